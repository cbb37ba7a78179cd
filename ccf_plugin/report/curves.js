// Curves: along the epochs of all models or of the means over their seeds, of the top pairs, and of ablations.

// The axes that the metrics name stand one under another; the first, of accuracies, is the tallest.
const titles = [...new Set(data.metrics.map((metric) => metric.axis))];
const [tallest, other, gap] = [0.58, 0.36, 0.07]; // of the height that two axes have
const axesHeight = tallest + (titles.length - 1) * (gap + other);
const axisOf = (metric) => `y${titles.indexOf(metric.axis) + 1}`.replace(/^y1$/, "y");
const MANY = 3; // models: of more, each axis shows its first figure alone until the legend is asked for others

const hasSeeds = data.means.some((one) => typeof one === "object");
const isApart = () => !hasSeeds || element("apart").checked;
const shownLines = () => isApart() ? data.lines : data.means.map((one) => typeof one === "object" ? one : data.lines[one]);

function axes(look) {
  const layouts = titles.map((title, place) => {
    const top = axesHeight - (place && tallest + gap + (place - 1) * (other + gap));
    const domain = [Math.max(0, top - (place ? other : tallest)), top].map((height) => height / axesHeight);
    const inPercent = data.metrics.find((metric) => metric.axis === title).format.endsWith("%");
    return axis(look, { domain, title, rangemode: "tozero",
      ...(inPercent && { tickformat: ".0%" }) });
  });
  return Object.fromEntries(layouts.map((arranged, place) => [`yaxis${place ? place + 1 : ""}`, arranged]));
}

const epochAxis = (look, more) => axis(look, { rangemode: "tozero", ...more });

/** A band between two curves, in a colour so faint that curves are seen through it; interrupted where there is none. */
function bandTraces(epochs, bounds, fill, more) {
  const spans = [];
  bounds.forEach((bound, at) => {
    if (bound === null) return;
    const last = spans.at(-1);
    const follows = last && bounds.slice(last.at(-1) + 1, at).every((between) => between === null);
    if (follows) last.push(at);
    else spans.push([at]);
  });
  return spans.map((span) => ({
    type: "scatter", mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: fill, hoverinfo: "skip",
    showlegend: false, x: [...span, ...span.toReversed()].map((at) => epochs[at]),
    y: [...span.map((at) => bounds[at][1]), ...span.toReversed().map((at) => bounds[at][0])], ...more,
  }));
}

figures.curves = (look) => {
  const lines = shownLines();
  const several = lines.length > 1;
  const { colours } = look;
  const traces = [], shapes = [], annotations = [], legend = new Map();
  const explain = (name, entry) => legend.set(name, { type: "scatter", x: [null], y: [null], name: plain(name),
    hoverinfo: "skip", ...entry });
  const visible = (metric) => !look.hidden && lines.length > MANY && !metric.first ? "legendonly" : true;
  const metrics = data.metrics.filter((metric) => !look.hidden?.has(metric.name)); // what is saved is as it is shown
  const ink = colour(look, "--text");
  if (several) lines.forEach((line, place) => explain(line.name,
    { mode: "lines", line: { color: colours[place % colours.length], width: 4 } }));
  lines.forEach((one, place) => {
    const ownColour = colours[place % colours.length];
    const prefix = several ? `${one.name}: ` : "";
    metrics.forEach((metric) => {
      const values = one.curves[metric.name];
      const known = values.filter((value) => value !== null).length;
      if (known === 0) return;
      const line = { color: several ? ownColour : colours[data.metrics.indexOf(metric) % colours.length], dash: metric.dash,
        width: look.line };
      const shared = { yaxis: axisOf(metric), legendgroup: metric.name, visible: visible(metric) };
      const band = isApart() || !data.lines.includes(one) ? one.bands[metric.name] : undefined; // one kind in a figure
      if (band && lines.length <= 2 * MANY) traces.push(...bandTraces(one.epoch, band, faint(line.color), shared));
      traces.push({
        type: "scatter", mode: known <= 60 && !look.paper ? "lines+markers" : "lines", x: one.epoch, y: values, line,
        connectgaps: true, marker: { size: 4 }, name: plain(prefix + metric.label), showlegend: false,
        hovertemplate: `%{y:${metric.format}}`, ...shared,
      });
      explain(metric.label, { mode: "lines", legendgroup: metric.name, // a click hides the figure
        visible: visible(metric),
        line: several ? { ...line, color: ink } : line });
    });
    for (const alarm of one.alarms) {
      const size = (alarm.epochs.length > 40 ? 6 : 9) - (look.paper ? 3 : 0);
      const marker = { symbol: alarm.symbol, size, color: colour(look, "--alarm") };
      const metric = metrics.find((known) => known.name === alarm.metric);
      if (!metric) continue;
      traces.push({
        type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, marker, yaxis: axisOf(metric),
        legendgroup: metric.name, x: alarm.epochs,
        y: alarm.epochs.map((epoch) => one.curves[alarm.metric][one.epoch.indexOf(epoch)] ?? null),
      });
      explain(`alarm: ${alarm.name}`, { mode: "markers", marker });
    }
    for (const metric of metrics) {
      const points = one.published.filter((point) => point[metric.published] !== undefined);
      if (points.length === 0) continue;
      const marker = { symbol: "diamond-open", size: 9, color: several ? ownColour : ink };
      traces.push({
        type: "scatter", mode: "markers", marker, yaxis: axisOf(metric), showlegend: false,
        legendgroup: metric.name, visible: visible(metric),
        name: plain(`${prefix}published ${metric.label}`), hovertemplate: `%{y:${metric.rounded}}`,
        x: points.map((point) => point.at), y: points.map((point) => point[metric.published]),
      });
      explain("published", { mode: "markers", marker: { ...marker, color: ink } });
    }
    const measured = metrics.find((metric) => metric.name === "test_robust_accuracy");
    if (several && measured && one.best.length) { // a line for each would hide the curves
      const marker = { symbol: "circle-open", size: look.paper ? 7 : 11, color: ownColour, line: { width: look.line } };
      traces.push({ type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, marker,
        yaxis: axisOf(measured), legendgroup: measured.name, x: one.best,
        y: one.best.map((epoch) => one.curves[measured.name][one.epoch.indexOf(epoch)] ?? null) });
      explain("best epoch", { mode: "markers", marker: { ...marker, color: ink } });
    } else for (const epoch of one.best) {
      shapes.push({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1,
        line: { color: ink, dash: "dash", width: look.line * 0.75 } });
      annotations.push({ x: epoch, yref: "paper", y: 1, yanchor: "bottom", showarrow: false,
        text: `best epoch ${epoch}`, font: { color: ink, size: look.size - 1 } });
    }
  });
  const head = heading(look, [data.title, bestInWords(lines), headingOfCurves(lines)]);
  const panels = (look.paper ? (look.width < 420 ? 240 : 320) : 460) * axesHeight;
  return { traces: [...traces, ...legend.values()], layout: layout(look, {
    ...withLegend(look, panels, [...legend.keys()], head.top + 20), ...head.layout, shapes,
    annotations: [...annotations, below(look, "epoch")],
    hovermode: "x unified", ...axes(look), xaxis: epochAxis(look, { anchor: `y${titles.length}` }),
  }) };
};

/** Of up to three models the best epoch with its figures. */
const bestInWords = (lines) => lines.length > MANY ? "" : lines.filter((line) => data.lines.includes(line))
  .map((line) => data.tracks[data.lines.indexOf(line)]).filter((track) => track.best !== null)
  .map((track) => `${lines.length > 1 ? `${track.name}, ` : ""}${track.states[bestPlace(track)].title}.`).join(" ");

function headingOfCurves(lines) {
  const bands = isApart() ? "95 % interval of test RA over images" : "mean \u00b1 sd over seeds";
  const measured = [...new Set(data.tracks.map((track) => track.measured))].join(" / ");
  return `${measured}${lines.some((line) => Object.keys(line.bands).length) ? `; bands: ${bands}` : ""}.`;
}

// ---- the top pairs ----

figures.pairs = (look) => {
  const track = data.tracks[chosen];
  const { colours } = look;
  const { pairs, epochs, values, at } = track.pairs;
  const names = pairs.map(([i, j]) => pairName(i, j));
  const traces = names.map((name, place) => ({
    type: "scatter", mode: epochs.length <= 60 ? "lines+markers" : "lines", x: epochs, y: values[place],
    marker: { size: look.paper ? 3 : 4 }, name: plain(name), hovertemplate: "%{y:.2f}", showlegend: true,
    line: { color: colours[place % colours.length], width: look.line,
      dash: dashes[(place + Math.floor(place / dashes.length)) % dashes.length] },
  }));
  const shapes = track.best === null ? [] : [{ type: "line", x0: track.best, x1: track.best, yref: "paper", y0: 0, y1: 1,
    line: { color: colour(look, "--text"), dash: "dash", width: look.line * 0.75 } }];
  const head = heading(look, [pairsTitle(track), `${track.measured}; the dashed line is the best epoch.`]);
  return { traces, layout: layout(look, {
    ...withLegend(look, look.paper ? 0.5 * Math.min(look.width, 520) : 340, names, head.top + 12), ...head.layout,
    shapes, annotations: [below(look, "epoch")], hovermode: "x unified", xaxis: epochAxis(look), yaxis: axis(look, { title: "C[i, j]" }),
  }) };
};

const pairsTitle = (track) => `${track.name}: the pairs that share most at epoch ${track.pairs.at}`;

function showPairs() {
  const track = data.tracks[chosen];
  const { pairs, epochs, values } = track.pairs;
  element("pairs-title").textContent = pairsTitle(track);
  element("pairs-head").replaceChildren(row(["epoch", ...pairs.map(([i, j]) => pairName(i, j))], "th"));
  fillTable("pairs-table", epochs.map((epoch, at) => [epoch, ...values.map((along) => number(along[at]))]));
  return draw("pairs");
}

// ---- ablations ----

data.ablations.forEach((ablation, place) => {
  figures[`ablation-${place}`] = (look) => {
    const { colours } = look;
    const kinds = ablation.margins[0].curves.map(({ name }) => name);
    const beside = !look.narrow && look.width > 420; // else one panel under the other
    const traces = ablation.margins.flatMap((margin, panel) => margin.curves.map(({ name, values }, kind) => ({
      type: "scatter", mode: "lines+markers", x: ablation.counts, y: values, name: plain(name), legendgroup: name,
      showlegend: panel === 0, xaxis: panel ? "x2" : "x", yaxis: panel ? "y2" : "y", marker: { size: 5 },
      line: { color: colours[kind], dash: dashes[kind], width: look.line }, hovertemplate: "%{y:.2f}",
    })));
    const counts = { type: "log", tickvals: ablation.counts, ticktext: ablation.counts.map(String) };
    const margins = { rangemode: "tozero", matches: "y" };
    const head = heading(look, [`${ablation.name}: margins without some features`, `${ablation.what}.`]);
    const tall = beside ? 1 : 2;
    const height = (look.paper ? 210 : 300) * tall;
    const captions = ablation.margins.map((margin, panel) => ({
      text: margin.heading, showarrow: false, xref: `x${panel ? 2 : ""} domain`, yref: `y${panel ? 2 : ""} domain`, x: 0,
      y: 1, yanchor: "bottom", xanchor: "left", font: { size: look.size } }));
    return { traces, layout: layout(look, {
      ...withLegend(look, height, kinds, head.top + 24), ...head.layout, 
      annotations: [...captions, below(look, `removed features, of ${ablation.features}`)], hovermode: "x unified",
      xaxis: axis(look, { ...counts, domain: beside ? [0, 0.46] : [0, 1], ...(beside || { anchor: "y" }) }),
      xaxis2: axis(look, { ...counts, domain: beside ? [0.54, 1] : [0, 1], anchor: "y2" }),
      yaxis: axis(look, { rangemode: "tozero", domain: beside ? [0, 1] : [0.56, 1],
        title: "change of the margin (logits)" }),
      yaxis2: axis(look, { ...margins, domain: beside ? [0, 1] : [0, 0.44], anchor: "x2" }),
    }) };
  };
});
