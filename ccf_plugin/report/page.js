// Draws the page's figures from the JSON beside it, and keeps slider, keys, tables and both colour schemes in step.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const classes = data.classes;
  const K = classes.length;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => dark.matches
    ? ["#6cb6ff", "#ffa657", "#56d4a0", "#f29bc8", "#e3c443", "#b8a9ff", "#5fd3e0", "#c9d1d9"]
    : ["#0059a8", "#c24e00", "#00745a", "#a8326f", "#7a5c00", "#5b46b0", "#006b7d", "#4d5661"];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads tags in its texts
  const number = (value, digits = 2) =>
    value === null ? "none" : value.toFixed(digits).replace(/^-(0\.0*)$/, "$1").replace("-", "\u2212");
  const pairName = (i, j) => `${classes[i]} \u2013 ${classes[j]}`;
  const config = { displayModeBar: false, responsive: true };
  const narrow = () => document.documentElement.clientWidth < 600;

  // ---- data ----

  const decoded = new Map();
  function matrixAt(track, place) {
    if (!decoded.has(track)) {
      const bytes = Uint8Array.from(atob(track.matrices), (character) => character.charCodeAt(0));
      decoded.set(track, new Int16Array(bytes.buffer));
    }
    const words = decoded.get(track);
    const matrix = Array.from({ length: K }, () => new Array(K));
    let at = place * K * (K + 1) / 2;
    for (let i = 0; i < K; i++) for (let j = i; j < K; j++, at++) {
      matrix[i][j] = matrix[j][i] = words[at] === -32768 ? null : words[at] / 32767;
    }
    return matrix;
  }

  const minus = (a, b) => a.map((row, i) => row.map((value, j) =>
    value === null || b[i][j] === null ? null : value - b[i][j]));

  /** The pairs i < j ordered by a key of their value, largest first. */
  function ordered(matrix, key) {
    const pairs = [];
    for (let i = 0; i < K; i++) for (let j = i + 1; j < K; j++) {
      if (matrix[i][j] !== null) pairs.push([i, j, matrix[i][j]]);
    }
    return pairs.sort((a, b) => key(b[2]) - key(a[2])).slice(0, 50);
  }

  function nearest(track, epoch) {
    let place = track.matrixEpochs.length - 1;
    track.matrixEpochs.forEach((embedded, at) => {
      if (Math.abs(embedded - epoch) < Math.abs(track.matrixEpochs[place] - epoch)) place = at;
    });
    return place;
  }
  const lastPlace = (track) => track.matrixEpochs.length - 1;
  const bestPlace = (track) => track.best === null ? lastPlace(track) : nearest(track, track.best);

  // ---- tables ----

  function row(cells, tag = "td") {
    const line = document.createElement("tr");
    cells.forEach((text, place) => {
      const cell = document.createElement(place === 0 || tag === "th" ? "th" : "td");
      if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      cell.textContent = text;
      line.append(cell);
    });
    return line;
  }

  // ---- curves ----

  function layout(more) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 52, r: 16, t: 24, b: 44 },
      hoverlabel: { bgcolor: colour("--field"), bordercolor: colour("--quiet"), font: { color: colour("--text") } },
      dragmode: false,
      ...more,
    };
  }
  const axis = (more) => ({ gridcolor: colour("--line"), zeroline: false, linecolor: colour("--quiet"), ...more });

  // The legend lies under the axis: in rows of three or more on a wide page, one entry a line on a phone.
  const legendRoom = (entries) => 19 * (narrow() ? entries : Math.ceil(entries / 3)) + 8;
  const withLegend = (height, entries) => ({
    height: height + legendRoom(entries),
    margin: { l: 52, r: 16, t: 14 + 14 * data.tracks.length, b: 52 + legendRoom(entries) },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", tracegroupgap: 0 },
  });

  // The axes that the metrics name stand one under another; the first, of accuracies, is the tallest.
  const titles = [...new Set(data.metrics.map((metric) => metric.axis))];
  const [tallest, other, gap] = [0.58, 0.36, 0.06]; // of the height that two axes have
  const axesHeight = tallest + (titles.length - 1) * (gap + other);
  const axisOf = (metric) => `y${titles.indexOf(metric.axis) + 1}`.replace(/^y1$/, "y");

  function axes() {
    const layouts = titles.map((title, place) => {
      const top = axesHeight - (place && tallest + gap + (place - 1) * (other + gap));
      const domain = [Math.max(0, top - (place ? other : tallest)), top].map((height) => height / axesHeight);
      const inPercent = data.metrics.find((metric) => metric.axis === title).format.endsWith("%");
      return axis({ domain, title: { text: title }, rangemode: "tozero", ...(inPercent && { tickformat: ".0%" }) });
    });
    return Object.fromEntries(layouts.map((layout, place) => [`yaxis${place ? place + 1 : ""}`, layout]));
  }

  function drawCurves() {
    const colours = palette();
    const several = data.tracks.length > 1;
    const traces = [], shapes = [], annotations = [], legend = new Map();
    // A trace of its own for each entry: colours stand for models, dashes for figures, marks for what is marked.
    const explain = (name, look) => legend.set(name, {
      type: "scatter", x: [null], y: [null], name: plain(name), hoverinfo: "skip", ...look });
    if (several) data.tracks.forEach((track, place) =>
      explain(track.name, { mode: "lines", line: { color: colours[place % colours.length], width: 4 } }));
    data.tracks.forEach((track, place) => {
      const trackColour = colours[place % colours.length];
      const prefix = several ? `${track.name}: ` : "";
      data.metrics.forEach((metric, metricPlace) => {
        const values = track.curves[metric.name];
        const known = values.filter((value) => value !== null).length;
        if (known === 0) return;
        const { dash } = metric;
        const line = { color: several ? trackColour : colours[metricPlace % colours.length], dash, width: 2 };
        traces.push({
          type: "scatter", mode: known <= 60 ? "lines+markers" : "lines", x: track.epoch, y: values, line,
          yaxis: axisOf(metric), connectgaps: true, marker: { size: 4 }, name: plain(prefix + metric.label),
          showlegend: false, legendgroup: metric.name, hovertemplate: `%{y:${metric.format}}`,
        });
        explain(metric.label, { mode: "lines", legendgroup: metric.name, // a click on it hides the figure's curves
          line: several ? { ...line, color: colour("--text") } : line });
      });
      for (const alarm of track.alarms) {
        const marker = { symbol: alarm.symbol, size: alarm.epochs.length > 40 ? 6 : 9, color: colour("--alarm") };
        const yaxis = axisOf(data.metrics.find((metric) => metric.name === alarm.metric));
        traces.push({
          type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, marker, yaxis, x: alarm.epochs,
          y: alarm.epochs.map((epoch) => track.curves[alarm.metric][track.epoch.indexOf(epoch)]),
        });
        explain(alarm.name, { mode: "markers", marker: { ...marker, size: 9 } });
      }
      for (const metric of data.metrics) {
        const points = track.published.filter((point) => point[metric.published] !== undefined);
        if (points.length === 0) continue;
        const marker = { symbol: "diamond-open", size: 9, color: several ? trackColour : colour("--text") };
        traces.push({
          type: "scatter", mode: "markers", marker, yaxis: axisOf(metric), showlegend: false,
          name: plain(`${prefix}published ${metric.label}`), hovertemplate: `%{y:${metric.rounded}}`,
          x: points.map((point) => point.at), y: points.map((point) => point[metric.published]),
        });
        explain("published", { mode: "markers", marker: { ...marker, color: colour("--text") } });
      }
      if (track.best !== null) {
        const shown = several ? trackColour : colour("--text");
        shapes.push({ type: "line", x0: track.best, x1: track.best, yref: "paper", y0: 0, y1: 1,
          line: { color: shown, dash: "dash", width: 1.5 } });
        annotations.push({ x: track.best, yref: "paper", y: 1, yanchor: "bottom", showarrow: false,
          yshift: 14 * (data.tracks.length - 1 - place), text: `best epoch ${track.best}`,
          font: { color: shown, size: 12 } });
      }
    });
    Plotly.react("curves", [...traces, ...legend.values()], layout({
      ...withLegend(480 * axesHeight, legend.size), shapes, annotations, hovermode: "x unified", ...axes(),
      xaxis: axis({ title: { text: "epoch", standoff: 8 }, anchor: `y${titles.length}`, rangemode: "tozero" }),
    }), config);
  }

  function drawPairs() {
    const track = data.tracks[chosen];
    const colours = palette();
    const pairs = track.pairs;
    const traces = pairs.pairs.map(([i, j], place) => ({
      type: "scatter", mode: pairs.epochs.length <= 60 ? "lines+markers" : "lines", x: pairs.epochs,
      y: pairs.values[place], marker: { size: 4 }, name: plain(pairName(i, j)), hovertemplate: "%{y:.2f}",
      line: { color: colours[place % colours.length], dash: dashes[(place + Math.floor(place / dashes.length)) % dashes.length], width: 2 },
    }));
    const shapes = track.best === null ? [] : [{ type: "line", x0: track.best, x1: track.best, yref: "paper", y0: 0, y1: 1,
      line: { color: colour("--text"), dash: "dash", width: 1.5 } }];
    element("pairs-title").textContent =
      `${data.tracks.length > 1 ? `${track.name}: ` : ""}the pairs that share most at epoch ${pairs.at}`;
    Plotly.react("pairs", traces, layout({
      ...withLegend(380, traces.length), shapes, hovermode: "x unified",
      xaxis: axis({ title: { text: "epoch", standoff: 8 }, rangemode: "tozero" }),
      yaxis: axis({ title: { text: "C" } }),
    }), config);
    element("pairs-head").replaceChildren(row(["epoch", ...pairs.pairs.map(([i, j]) => pairName(i, j))], "th"));
    element("pairs-table").replaceChildren(...pairs.epochs.map((epoch, at) =>
      row([epoch, ...pairs.values.map((values) => number(values[at]))])));
  }

  // ---- matrices ----

  const labelsOf = (name) => classes.map((a, i) => classes.map((b, j) => plain(name(i, j))));
  const pairLabels = labelsOf(pairName);
  const takenName = (i, j) => i === j ? `${classes[i]}, recognised` : `${classes[i]}, taken for ${classes[j]}`;
  const takenLabels = labelsOf(takenName);
  const shown = {}; // by figure: the matrix that it shows, the cell that the keys are at, and what cells are called

  /** At most so many class names, evenly over the visible range; the names of all where they fit. */
  function ticks(range, most) {
    const low = Math.max(0, Math.ceil(Math.min(...range))), high = Math.min(K - 1, Math.floor(Math.max(...range)));
    const step = Math.max(1, Math.ceil((high - low + 1) / most));
    const tickvals = [];
    for (let place = low; place <= high; place += step) tickvals.push(place);
    return { tickvals, ticktext: tickvals.map((place) => plain(short(classes[place]))) };
  }
  const short = (name) => name.length > 16 ? `${name.slice(0, 15)}\u2026` : name;
  const mostLabels = () => narrow() ? (K > 25 ? 8 : 12) : (K > 25 ? 16 : 25);

  function drawMatrix(id, matrix, [zmin, zmax], colours, [name, names] = [pairName, pairLabels]) {
    const isTurned = shown[id] !== undefined && shown[id].isNarrow !== narrow();
    shown[id] = { matrix, name, cell: shown[id]?.cell ?? [0, 0], isNarrow: narrow() };
    const side = Math.min(element(id).parentElement.clientWidth, 640);
    const stops = colours.map((stop, place) => [place / (colours.length - 1), stop]);
    const numbers = K <= 12 && !narrow();
    const full = [-0.5, K - 0.5];
    const labelled = (more) => ({
      ...ticks(full, mostLabels()), range: full, showgrid: false, zeroline: false, ticks: "", constrain: "domain",
      automargin: true, tickfont: { size: narrow() ? 11 : 12 }, ...more });
    const trace = {
      type: "heatmap", z: matrix, zmin, zmax, colorscale: stops, customdata: names,
      hovertemplate: "%{customdata}<br>%{z:.3f}<extra></extra>", hoverongaps: false,
      colorbar: narrow()
        ? { orientation: "h", thickness: 12, y: 1.01, yanchor: "bottom", outlinewidth: 0 } // clear of the class names
        : { thickness: 14, outlinewidth: 0, len: 0.9 },
      ...(numbers ? { texttemplate: "%{z:.2f}", textfont: { size: 11 } } : {}),
    };
    // Plotly leaves parts of a colour bar behind whose orientation changes: take the old bar away first.
    if (isTurned) Plotly.restyle(id, { showscale: false });
    Plotly.react(id, [trace], layout({
      height: side + (narrow() ? 20 : -40), margin: { l: 10, r: 10, t: 10, b: 10 },
      plot_bgcolor: colour("--missing"), dragmode: K > 25 && !touch.matches ? "zoom" : false,
      xaxis: labelled({ tickangle: classes.every((name) => name.length <= 2) ? 0 : -45 }),
      yaxis: labelled({ range: [K - 0.5, -0.5], scaleanchor: "x" }),
    }), config);
  }

  function sayCell(id, i, j) {
    element(`${id}-cell`).textContent = `${shown[id].name(i, j)}: ${number(shown[id].matrix[i][j], 3)}`;
  }

  function walk(id, event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    shown[id].cell = shown[id].cell.map((place, axisAt) => Math.min(K - 1, Math.max(0, place + step[axisAt])));
    const [i, j] = shown[id].cell;
    Plotly.Fx.hover(id, { xval: j, yval: i }, "xy"); // the label that a pointer would call up
    sayCell(id, i, j);
  }

  function followMatrix(id) {
    const plot = element(id);
    plot.addEventListener("keydown", (event) => walk(id, event));
    plot.on("plotly_hover", (event) => {
      const [i, j] = event.points[0].pointNumber;
      shown[id].cell = [i, j];
      sayCell(id, i, j);
    });
    if (K > 25) plot.on("plotly_relayout", (change) => {
      if (!Object.keys(change).some((key) => /range|autorange/.test(key))) return;
      const [x, y] = [plot.layout.xaxis.range, plot.layout.yaxis.range].map((range) => ticks(range, mostLabels()));
      Plotly.relayout(plot, { "xaxis.tickvals": x.tickvals, "xaxis.ticktext": x.ticktext,
        "yaxis.tickvals": y.tickvals, "yaxis.ticktext": y.ticktext });
    });
  }

  let chosen = 0;

  function showEpoch() {
    const track = data.tracks[chosen];
    const place = Number(element("epoch").value);
    const epoch = track.matrixEpochs[place];
    const title = track.matrixTitles[place];
    const matrix = matrixAt(track, place);
    element("epoch-label").textContent = `Epoch ${epoch}`;
    element("epoch").setAttribute("aria-valuetext", title);
    element("matrix-title").textContent = (data.tracks.length > 1 ? `${track.name}, ` : "") + title;
    drawMatrix("matrix", matrix, data.scale, data.blues);
    element("matrix-table").replaceChildren(
      ...ordered(matrix, (value) => value).map(([i, j, value]) => row([pairName(i, j), number(value, 3)])));
  }

  function chooseTrack(place) {
    chosen = place;
    const track = data.tracks[chosen];
    element("epoch").max = lastPlace(track);
    element("epoch").disabled = lastPlace(track) === 0;
    element("epoch").value = bestPlace(track);
    showEpoch();
    drawPairs();
  }

  function showDifference() {
    const [first, second] = ["first", "second"].map((id) => element(id).value.split(" ").map(Number));
    const [a, b] = [first, second].map(([track, place]) => matrixAt(data.tracks[track], place));
    const matrix = minus(a, b);
    const [low, high] = data.differenceScale;
    const both = element("signs").value === "both";
    const pairs = matrix.flatMap((line, i) => line.slice(i + 1)).filter((value) => value !== null);
    const below = pairs.filter((value) => value < 0).length;
    const cas = (m) => m.flatMap((line, i) => line.filter((value, j) => i !== j && value > 0))
      .reduce((sum, value) => sum + value, 0);
    element("difference-title").textContent =
      `\u0394CAS = ${number(cas(a) - cas(b), 1)}; of ${pairs.length} pairs ${below} are negative` +
      (both || below === 0 ? "" : ", white on this scale");
    drawMatrix("difference", matrix, both ? [-high, high] : [low, high], both ? data.bothSigns : data.blues);
    element("difference-table").replaceChildren(
      ...ordered(matrix, Math.abs).map(([i, j, value]) => row([pairName(i, j), number(value, 3)])));
  }

  function showConfusion() {
    if (!element("confusion")) return;
    const { name, counts } = data.confusions[element("confused").value];
    const matrix = classes.map(() => new Array(K).fill(0));
    for (let at = 0; at < counts.length; at += 2) matrix[Math.floor(counts[at] / K)][counts[at] % K] = counts[at + 1];
    const totals = matrix.map((line) => line.reduce((sum, value) => sum + value, 0));
    const shares = matrix.map((line, i) => line.map((value) => totals[i] ? value / totals[i] : null));
    const mistakes = shares.flatMap((line, i) => line.map((value, j) => [i, j, value]))
      .filter(([i, j, value]) => i !== j && value > 0).sort((a, b) => b[2] - a[2]);
    const all = totals.reduce((sum, value) => sum + value, 0);
    const right = matrix.reduce((sum, line, i) => sum + line[i], 0);
    element("confusion-title").textContent = `${name}: ${number(100 * right / all, 1)} % are recognised`;
    drawMatrix("confusion", shares, [0, mistakes.length ? mistakes[0][2] : 1], data.blues, [takenName, takenLabels]);
    element("confusion-table").replaceChildren(
      ...mistakes.slice(0, 50).map(([i, j, value]) => row([takenName(i, j), number(value, 3)])));
  }

  function fillChoices() {
    const group = (track, at) => {
      const whose = data.tracks.length === 1 ? "" : `${track.name}, `; // a closed list shows no group's name
      const choices = track.matrixEpochs.map((epoch, place) =>
        new Option(`${whose}epoch ${epoch}${epoch === track.best ? " (best)" : ""}`, `${at} ${place}`));
      if (data.tracks.length === 1) return choices;
      const named = document.createElement("optgroup");
      named.label = track.name;
      named.append(...choices);
      return [named];
    };
    for (const id of ["first", "second"]) element(id).append(...data.tracks.flatMap(group));
    element("first").value = `0 ${bestPlace(data.tracks[0])}`; // Figure 4: best minus last; or the best of two runs
    element("second").value =
      data.tracks.length > 1 ? `1 ${bestPlace(data.tracks[1])}` : `0 ${lastPlace(data.tracks[0])}`;
    if (element("confused")) {
      element("confused").append(...data.confusions.map(({ name }, at) => new Option(name, at)));
      const attacked = data.confusions.findIndex(({ name }) => name.endsWith("under attack"));
      element("confused").value = Math.max(0, attacked);
    }
    if (element("track")) element("track").append(...data.tracks.map((track, at) => new Option(track.name, at)));
  }

  function drawAll() {
    drawCurves();
    showEpoch();
    drawPairs();
    showDifference();
    showConfusion();
  }

  fillChoices();
  chooseTrack(0);
  drawCurves();
  showDifference();
  showConfusion();
  for (const id of Object.keys(shown)) followMatrix(id);
  element("epoch").addEventListener("input", showEpoch);
  const jump = (place) => { element("epoch").value = place; showEpoch(); };
  element("to-best").addEventListener("click", () => jump(bestPlace(data.tracks[chosen])));
  element("to-last").addEventListener("click", () => jump(lastPlace(data.tracks[chosen])));
  element("track")?.addEventListener("change", (event) => chooseTrack(Number(event.target.value)));
  element("confused")?.addEventListener("change", showConfusion);
  for (const id of ["first", "second", "signs"]) element(id).addEventListener("change", showDifference);
  for (const button of document.querySelectorAll(".save")) button.addEventListener("click", () =>
    Plotly.downloadImage(button.dataset.figure, { format: "svg", filename: button.dataset.figure }));
  dark.addEventListener("change", drawAll);
  let width = document.documentElement.clientWidth;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return; // a phone's address bar comes and goes
    width = document.documentElement.clientWidth;
    drawAll();
  });
})();
