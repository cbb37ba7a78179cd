// Matrices over classes: C of an epoch, what is taken for what beside it, each class's accuracy, and differences of C.

const decoded = new Map();
function matrixOf(state) {
  if (!decoded.has(state)) {
    const bytes = Uint8Array.from(atob(state.C), (character) => character.charCodeAt(0));
    const words = new Int16Array(bytes.buffer);
    const matrix = classes.map(() => new Array(K));
    for (let i = 0, at = 0; i < K; i++) for (let j = i; j < K; j++, at++) {
      matrix[i][j] = matrix[j][i] = words[at] === -32768 ? null : words[at] / 32767;
    }
    decoded.set(state, matrix);
  }
  return decoded.get(state);
}

const minus = (a, b) => a.map((line, i) => line.map((value, j) =>
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
  const distances = track.states.map((state) => Math.abs(state.epoch - epoch));
  return distances.lastIndexOf(Math.min(...distances));
}
const lastPlace = (track) => track.states.length - 1;
const bestPlace = (track) => track.best === null ? lastPlace(track) : nearest(track, track.best);

let chosen = 0; // the track of matrix, confusion, accuracies and pairs
const chosenState = () => data.tracks[chosen].states[Number(element("epoch").value)];
const named = (track, text) => `${track.name}, ${text}`;

// ---- how a matrix is drawn ----

const labelsOf = (name) => classes.map((a, i) => classes.map((b, j) => plain(name(i, j))));
const takenName = (i, j) => i === j ? `${classes[i]}, recognised` : `${classes[i]}, taken for ${classes[j]}`;
const pairLabels = labelsOf(pairName);
const takenLabels = labelsOf(takenName);
const shown = {}; // by figure: its matrix, names and scale, and the cell that the keys are at

/** At most so many class names, evenly over the visible range; the names of all where they fit. */
function ticks(range, most) {
  const low = Math.max(0, Math.ceil(Math.min(...range))), high = Math.min(K - 1, Math.floor(Math.max(...range)));
  const step = Math.max(1, Math.ceil((high - low + 1) / most));
  const tickvals = [];
  for (let place = low; place <= high; place += step) tickvals.push(place);
  return { tickvals, ticktext: tickvals.map((place) => plain(short(classes[place]))) };
}
const mostLabels = (look) => {
  const fitting = Math.max(4, Math.floor((look.width - 120) / (1.35 * look.size)));
  return K > 25 ? Math.min(16, fitting) : fitting;
};

function matrixFigure(id, look) {
  const { matrix, names, scale: [zmin, zmax], colours, bar, heading: texts } = shown[id];
  const side = Math.min(look.width, 640);
  const longest = widest(look, classes.map(short));
  const size = look.size - 1;
  const upright = classes.every((name) => name.length <= 2);
  const room = { // for class names and colour bar
    left: longest + 10, bottom: upright ? 1.6 * size + 6 : 0.75 * longest + 1.6 * size,
    right: look.narrow ? 10 : 3.9 * look.size + 16 };
  const head = heading(look, texts);
  const barRoom = look.narrow ? 44 : 0;
  const top = head.top + 8 + barRoom;
  const inside = side - room.left - room.right;
  const height = inside + top + room.bottom;
  const cell = inside / K;
  const fits = Math.min(12, 0.345 * cell);
  const full = [-0.5, K - 0.5];
  const labelled = (more) => axis(look, { ...ticks(full, mostLabels({ ...look, width: side })), range: full,
    showgrid: false, ticks: "", constrain: "domain", tickfont: { size }, ...more });
  const ends = { outlinewidth: 0, tickfont: { size }, title: { text: bar, font: { size } } };
  const trace = {
    type: "heatmap", z: matrix, zmin, zmax, customdata: names, hoverongaps: false,
    colorscale: colours.map((stop, place) => [place / (colours.length - 1), stop]),
    hovertemplate: "%{customdata}<br>%{z:.3f}<extra></extra>",
    colorbar: look.narrow
      ? { orientation: "h", thickness: 12, y: 1, ypad: 4, yanchor: "bottom", ...ends, title: { ...ends.title, side: "top" } }
      : { thickness: look.size, xpad: 6, len: 1, y: 0.5, ...ends, title: { ...ends.title, side: "right" } },
    ...(fits >= (look.paper ? 6.67 : 9) ? { texttemplate: "%{z:.2f}", textfont: { size: fits } } : {}),
  };
  return { traces: [trace], cells: { matrix, scale: [zmin, zmax], colours }, layout: layout(look, {
    ...head.layout, width: side, height, margin: { l: room.left, r: room.right, t: top, b: room.bottom },
    plot_bgcolor: colour(look, "--missing"), dragmode: K > 25 && !touch.matches ? "zoom" : false,
    xaxis: labelled({ tickangle: upright ? 0 : -45 }), yaxis: labelled({ range: [K - 0.5, -0.5], scaleanchor: "x" }),
  }) };
}

for (const id of ["matrix", "confusion", "difference"]) figures[id] = (look) => matrixFigure(id, look);

function drawMatrix(id, content) {
  const narrow = document.documentElement.clientWidth < NARROW;
  // Plotly leaves parts of a colour bar behind whose orientation changes: take the old bar away first.
  if (shown[id] && shown[id].isNarrow !== narrow) Plotly.restyle(id, { showscale: false });
  shown[id] = { name: pairName, names: pairLabels, cell: shown[id]?.cell ?? [0, 0], isNarrow: narrow, ...content };
  return draw(id);
}

// ---- pointing and walking ----

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
    const most = mostLabels(screenLook(id));
    const [x, y] = [plot.layout.xaxis.range, plot.layout.yaxis.range].map((range) => ticks(range, most));
    Plotly.relayout(plot, { "xaxis.tickvals": x.tickvals, "xaxis.ticktext": x.ticktext,
      "yaxis.tickvals": y.tickvals, "yaxis.ticktext": y.ticktext });
  });
}

// ---- the chosen epoch: C, confusions, accuracies ----

function showEpoch() {
  const track = data.tracks[chosen];
  const state = chosenState();
  const matrix = matrixOf(state);
  element("epoch-label").textContent = `Epoch ${state.epoch}`;
  element("epoch").setAttribute("aria-valuetext", state.title);
  element("matrix-title").textContent = data.tracks.length > 1 ? named(track, state.title) : state.title;
  drawMatrix("matrix", { matrix, scale: data.scale, colours: data.blues, bar: "C[i, j] (cosine)",
    heading: [named(track, state.title), `${track.measured}; brackets: 95 % interval over images.`] });
  fillTable("matrix-table", ordered(matrix, (value) => value).map(([i, j, value]) => [pairName(i, j), number(value, 3)]));
  showConfusion();
}

/** Counts of an epoch's confusions, by true (rows) and predicted class. */
function countsOf(sparse) {
  const counts = classes.map(() => new Array(K).fill(0));
  for (let at = 0; at < sparse.length; at += 2) counts[Math.floor(sparse[at] / K)][sparse[at] % K] = sparse[at + 1];
  return counts;
}
const sum = (values) => values.reduce((total, value) => total + value, 0);

function showConfusion() {
  if (!element("confusion")) return;
  const track = data.tracks[chosen];
  const state = chosenState();
  const images = state.confusions[element("confused").value] ? element("confused").value
    : Object.keys(state.confusions).at(-1);
  element("confusion-figure").hidden = images === undefined;
  element("classes-figure").hidden = images === undefined;
  element("confusion-none").hidden = images !== undefined;
  if (images === undefined) return;
  const counts = countsOf(state.confusions[images]);
  const totals = counts.map(sum);
  const shares = counts.map((line, i) => line.map((value) => totals[i] ? value / totals[i] : null));
  const mistakes = shares.flatMap((line, i) => line.map((value, j) => [i, j, value]))
    .filter(([i, j, value]) => i !== j && value > 0).sort((a, b) => b[2] - a[2]);
  const right = sum(counts.map((line, i) => line[i]));
  const title = `epoch ${state.epoch}, ${images}: ${right} of ${sum(totals)} images are recognised, ` +
    percent(right / sum(totals));
  element("confusion-title").textContent = title;
  drawMatrix("confusion", { matrix: shares, scale: [0, mistakes.length ? mistakes[0][2] : 1], colours: data.blues,
    bar: "share of the true class's images", name: takenName, names: takenLabels,
    heading: [named(track, title), `Rows: true classes, columns: predicted ones. ${track.measured}.`] });
  fillTable("confusion-table", mistakes.slice(0, 50).map(([i, j, value]) =>
    [takenName(i, j), counts[i][j], percent(value)]));
  showClasses(track, state, totals);
}

const withInterval = (entry) =>
  entry === null ? "none" : `${percent(entry[0])} (${number(100 * entry[1], 1)} to ${number(100 * entry[2], 1)})`;
/** What a class adds to CAS: the positive part of its row of C, without the diagonal. */
const sharedBy = (matrix) => matrix.map((line, i) =>
  line[i] === null ? null : sum(line.map((value, j) => i === j ? 0 : Math.max(value ?? 0, 0))));

function showClasses(track, state, totals) {
  const kinds = Object.keys(state.accuracies);
  const sums = sharedBy(matrixOf(state));
  element("classes-head").replaceChildren(
    row(["class", "images", ...kinds.map((kind) => `accuracy, ${kind}`), "its part of CAS"], "th"));
  fillTable("classes-table", classes.map((name, i) =>
    [name, totals[i], ...kinds.map((kind) => withInterval(state.accuracies[kind][i])), number(sums[i], 2)]));
  element("classes-title").textContent = `epoch ${state.epoch}: the accuracy on each class, clean and under attack`;
  draw("classes");
}

figures.classes = (look) => {
  const state = chosenState();
  const track = data.tracks[chosen];
  const kinds = Object.keys(state.accuracies);
  const traces = kinds.map((kind, place) => {
    const entries = state.accuracies[kind];
    const value = (at) => entries.map((entry) => entry === null ? null : entry[at]);
    const differences = (a, b) => entries.map((entry) => entry === null ? null : entry[a] - entry[b]);
    return {
      type: "scatter", mode: "markers", name: kind, showlegend: true, y: value(0),
      x: classes.map((_, i) => i + (place - (kinds.length - 1) / 2) * 0.24), // side by side
      error_y: { type: "data", array: differences(2, 0), arrayminus: differences(0, 1), thickness: look.line * 0.7,
        width: K > 25 ? 0 : 3, color: look.colours[place] },
      marker: { color: look.colours[place], size: K > 25 ? 4 : 7, symbol: place ? "square" : "circle" },
      customdata: entries.map((entry, i) => plain(`${classes[i]}, ${kind}: ${withInterval(entry)}`)),
      hovertemplate: "%{customdata}<extra></extra>",
    };
  });
  const longest = widest(look, classes.map(short));
  const head = heading(look, [named(track, `epoch ${state.epoch}: accuracy by class`),
    `${track.measured}; bars: Wilson's 95 % interval over the class's images.`]);
  const arranged = withLegend(look, look.paper ? 190 : 260, kinds, head.top + 8);
  const names = classes.every((name) => name.length <= 2) ? 0 : 0.75 * longest;
  arranged.margin.b += names - 1.2 * look.size;
  return { traces, layout: layout(look, {
    ...arranged, ...head.layout, height: arranged.height + names,
    xaxis: axis(look, { ...ticks([-0.5, K - 0.5], mostLabels(look)), range: [-0.6, K - 0.4], showgrid: false,
      tickangle: names ? -45 : 0 }),
    yaxis: axis(look, { tickformat: ".0%", range: [0, 1.02], title: "accuracy" }),
  }) };
};

// ---- differences ----

function showDifference() {
  const [first, second] = ["first", "second"].map((id) => element(id).value.split(" ").map(Number))
    .map(([track, place]) => ({ track: data.tracks[track], state: data.tracks[track].states[place] }));
  const [a, b] = [first, second].map(({ state }) => matrixOf(state));
  const matrix = minus(a, b);
  const [low, high] = data.differenceScale;
  const both = element("signs").value === "both";
  const pairs = matrix.flatMap((line, i) => line.slice(i + 1)).filter((value) => value !== null);
  const below = pairs.filter((value) => value < 0).length;
  const cas = (m) => sum(sharedBy(m).map((value) => value ?? 0));
  const title = `\u0394CAS = ${number(cas(a) - cas(b), 1)}; of ${pairs.length} pairs ${below} are negative` +
    (both || below === 0 ? "" : ", white on this scale");
  const [one, another] = [first, second].map(({ track, state }) => named(track, `epoch ${state.epoch}`));
  element("difference-title").textContent = title;
  drawMatrix("difference", { matrix, scale: both ? [-high, high] : [low, high],
    colours: both ? data.bothSigns : data.blues, bar: "difference of C[i, j]",
    heading: [`C at ${one} minus C at ${another}`, `${title}. ${first.track.measured}.`] });
  const inCas = (i, j) => Math.max(a[i][j], 0) - Math.max(b[i][j], 0);
  fillTable("difference-table", ordered(matrix, Math.abs).map(([i, j, value]) =>
    [pairName(i, j), number(value, 3), number(inCas(i, j), 3)]));
}
