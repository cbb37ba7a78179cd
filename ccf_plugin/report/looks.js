// What all figures share: the page's data, colours and sizes on a screen and on paper, words, and how one is saved.
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const classes = data.classes;
const K = classes.length;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const touch = window.matchMedia("(pointer: coarse)");
const config = { displayModeBar: false, responsive: false };
const dashes = ["solid", "dash", "dot", "dashdot"];
const MINUS = "\u2212";
const SANS = 'Arial, Helvetica, "Liberation Sans", "DejaVu Sans", sans-serif'; // fonts that programs for figures know
const PIXELS_PER_INCH = 96;
const NARROW = 600;
const PRINTED = 6.75; // inches

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads tags in its texts
const number = (value, digits = 2) =>
  value === null ? "none" : value.toFixed(digits).replace(/^-(0\.0*)$/, "$1").replace("-", MINUS);
const percent = (value) => value === null ? "none" : `${number(100 * value, 1)}\u00a0%`;
const pairName = (i, j) => `${classes[i]} \u2013 ${classes[j]}`;
const short = (name) => name.length > 16 ? `${name.slice(0, 15)}\u2026` : name;

// ---- looks ----

const LIGHT = ["#0059a8", "#c24e00", "#00745a", "#a8326f", "#7a5c00", "#5b46b0", "#006b7d", "#4d5661", "#1a237e",
  "#3d6b00", "#8a3ffc", "#7b4b2a"];
const DARK = ["#6cb6ff", "#ffa657", "#56d4a0", "#f29bc8", "#e3c443", "#b8a9ff", "#5fd3e0", "#c9d1d9", "#9fa8da",
  "#a6d96a", "#d0a2ff", "#d7a77f"];
let printing = false;

/** How a figure is drawn: its width, its sizes and its colours; on a screen as the page has them. */
function screenLook(id) {
  if (printing) return paperLook(PRINTED);
  const width = element(id).clientWidth;
  return { width, narrow: document.documentElement.clientWidth < NARROW, size: 13, line: 2, paper: false,
    colours: dark.matches ? DARK : LIGHT, style: getComputedStyle(document.documentElement),
    family: getComputedStyle(document.body).fontFamily };
}

/** On paper colours are light, letters as small as a paper's captions, and the layout that of a wide screen. */
function paperLook(inches) {
  const size = inches < 5 ? 9.5 : 11; // 7 and 8 points
  return { width: Math.round(inches * PIXELS_PER_INCH), narrow: false, size, line: 1.4, paper: true, colours: LIGHT,
    style: getComputedStyle(document.querySelector(".paper")), family: SANS };
}

const colour = (look, name) => look.style.getPropertyValue(name).trim();
const faint = (hex) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},0.18)`;
const ruler = document.createElement("canvas").getContext("2d");

/** The width of a text, in pixels. */
function measure(look, text, weight = "normal") {
  ruler.font = `${weight} ${look.size}px ${look.family}`;
  return ruler.measureText(text).width;
}
const widest = (look, texts) => Math.max(0, ...texts.map((text) => measure(look, text)));

/** Lines as wide as the figure at most; a longer word stands alone. */
function wrapped(look, text, weight) {
  const lines = [];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`;
    if (lines.length && measure(look, longer, weight) <= look.width - 10) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/** The title of a figure on paper, its first sentence bold, and the room that it takes; on a screen the page has it. */
function heading(look, texts) {
  if (!look.paper || printing) return { top: 0, layout: {} };
  const [first, ...others] = texts.filter(Boolean);
  const lines = [...wrapped(look, first, "bold").map((line) => `<b>${plain(line)}</b>`),
    ...others.flatMap((text) => wrapped(look, text)).map(plain)];
  return { top: lines.length * 1.3 * look.size + 8, layout: { title: {
    text: lines.join("<br>"), x: 0, xref: "container", xanchor: "left", y: 1, yref: "container", yanchor: "top",
    pad: { l: 4, t: 4 + 0.9 * look.size }, font: { size: look.size }, automargin: false } } };
}

function layout(look, more) {
  return {
    paper_bgcolor: look.paper ? "#ffffff" : "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", width: look.width,
    font: { color: colour(look, "--text"), family: look.family, size: look.size },
    hoverlabel: { bgcolor: colour(look, "--field"), bordercolor: colour(look, "--quiet"),
      font: { color: colour(look, "--text") } },
    dragmode: false,
    ...more,
  };
}

const axis = (look, { title, ...more }) => ({ gridcolor: colour(look, "--line"), zeroline: false,
  linecolor: colour(look, "--quiet"), tickfont: { size: look.size - 1 },
  ...(title && { title: { text: title, font: { size: look.size } } }), ...more });

/** The legend lies under the axes, as many entries a line as the longest leaves room for. */
function withLegend(look, height, names, top = 14) {
  const size = look.size - 1;
  const [left, right, below] = [3.1 * look.size + 16, 12, 10 + 2.6 * look.size];
  const text = Math.ceil(widest({ ...look, size }, names)) + 4;
  const aLine = Math.max(1, Math.floor((look.width - left - right) / (text + 56)));
  const room = Math.max(19, 1.3 * size + 3) * Math.ceil(names.length / aLine) + 6;
  return {
    height: height + room + top + below,
    margin: { l: left, r: right, t: top, b: below + room },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", xref: "container", x: 0, xanchor: "left",
      entrywidth: text, tracegroupgap: 0, font: { size }, itemwidth: 30 },
  };
}

/** The title of the lowest axis; plotly's own comes to lie over the numbers where a figure has shapes. */
const below = (look, text) => ({ text, showarrow: false, xref: "paper", x: 0.5, yref: "paper", y: 0, yanchor: "top",
  yshift: -1.6 * look.size });

// ---- figures ----

const figures = {}; // by id: a function of the look, to traces, layout, and on paper what else is to be done

function draw(id) {
  const { traces, layout: arranged } = figures[id](screenLook(id));
  return Plotly.react(id, traces, arranged, config);
}

/** The figure as a paper takes it, as SVG: so many inches wide, light, in fonts that exist, its cells as shapes. */
async function paperSvg(id, inches) {
  const hidden = new Set(element(id).data.filter((trace) => trace.visible === "legendonly")
    .map((trace) => trace.legendgroup));
  const { traces, layout: arranged, cells } = figures[id]({ ...paperLook(inches), hidden });
  const { width, height } = arranged;
  const address = await Plotly.toImage({ data: traces, layout: arranged, config: { staticPlot: true } },
    { format: "svg", width, height });
  const drawn = new DOMParser().parseFromString(decodeURIComponent(address.slice(address.indexOf(",") + 1)),
    "image/svg+xml");
  const svg = drawn.documentElement;
  svg.setAttribute("width", `${inches}in`);
  svg.setAttribute("height", `${(height / PIXELS_PER_INCH).toFixed(3)}in`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (cells) cellsAsShapes(drawn, cells);
  const title = drawn.createElementNS(svg.namespaceURI, "title");
  title.textContent = `${data.title}: ${element(id).getAttribute("aria-label")}`;
  svg.prepend(title);
  return new XMLSerializer().serializeToString(drawn);
}

async function save(id, inches) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await paperSvg(id, inches)], { type: "image/svg+xml" }));
  link.download = `${[id, ...figureName(id)].join("-").replace(/[^\p{L}\p{N}.-]+/gu, "_")}-${inches}in.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** In place of plotly's picture of a heatmap, which is of pixels: a shape for each run of cells of one colour. */
function cellsAsShapes(drawn, { matrix, scale: [low, high], colours }) {
  const picture = drawn.querySelector(".heatmaplayer image");
  if (!picture || matrix.length > 200) return; // of so many cells a picture is smaller
  const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(picture.getAttribute(name)));
  const stops = colours.map((stop) => stop.match(/\d+(\.\d+)?/g).map(Number));
  const shade = (value) => {
    const place = Math.min(1, Math.max(0, (value - low) / (high - low))) * (stops.length - 1);
    const at = Math.min(stops.length - 2, Math.floor(place));
    return `rgb(${stops[at].map((part, k) => Math.round(part + (place - at) * (stops[at + 1][k] - part))).join(",")})`;
  };
  const group = drawn.createElementNS(drawn.documentElement.namespaceURI, "g");
  group.setAttribute("shape-rendering", "crispEdges"); // no seams between neighbours
  const [wide, tall] = [width / matrix[0].length, height / matrix.length];
  matrix.forEach((line, i) => {
    const shades = line.map((value) => value === null ? null : shade(value));
    for (let j = 0, end; j < line.length; j = end) {
      for (end = j + 1; end < line.length && shades[end] === shades[j];) end += 1;
      if (shades[j] === null) continue;
      const cell = drawn.createElementNS(group.namespaceURI, "rect");
      const place = { x: x + j * wide, y: y + i * tall, width: (end - j) * wide, height: tall };
      for (const [name, value] of Object.entries(place)) cell.setAttribute(name, value.toFixed(2));
      cell.setAttribute("fill", shades[j]);
      group.append(cell);
    }
  });
  picture.replaceWith(group);
}

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

const fillTable = (id, rows) => element(id).replaceChildren(...rows.map((cells) => row(cells)));
