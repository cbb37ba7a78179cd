// The page: what is chosen, drawn again, saved and printed.

function chooseTrack(place) {
  chosen = place;
  const track = data.tracks[chosen];
  element("epoch").max = lastPlace(track);
  element("epoch").disabled = lastPlace(track) === 0;
  element("epoch").value = bestPlace(track);
  showEpoch();
  showPairs();
}

function fillChoices() {
  const several = data.tracks.length > 1;
  const group = (track, at) => {
    const whose = several ? `${track.name}, ` : ""; // a closed list shows no group's name
    const choices = track.states.map((state, place) =>
      new Option(`${whose}epoch ${state.epoch}${state.epoch === track.best ? " (best)" : ""}`, `${at} ${place}`));
    if (!several) return choices;
    const of = document.createElement("optgroup");
    of.label = track.name;
    of.append(...choices);
    return [of];
  };
  for (const id of ["first", "second"]) element(id).append(...data.tracks.flatMap(group));
  element("first").value = `0 ${bestPlace(data.tracks[0])}`; // Figure 4: best minus last; or the best of two runs
  const other = bestPlace(data.tracks[0]) === lastPlace(data.tracks[0]) ? 0 : lastPlace(data.tracks[0]);
  element("second").value = several ? `1 ${bestPlace(data.tracks[1])}` : `0 ${other}`;
  if (element("confused")) {
    const kinds = [...new Set(data.tracks.flatMap((track) => track.states.flatMap((state) =>
      Object.keys(state.confusions))))];
    element("confused").append(...kinds.map((kind) => new Option(kind, kind)));
    element("confused").value = kinds.at(-1) ?? ""; // under attack, where that was measured
  }
  if (element("track")) element("track").append(...data.tracks.map((track, at) => new Option(track.name, at)));
}

/** What a saved figure's file is called beside its kind. */
function figureName(id) {
  if (id === "curves" || id.startsWith("ablation")) return [];
  if (id === "difference") return ["first", "second"].map((one) => element(one).selectedOptions[0].text);
  return [data.tracks[chosen].name, ...(id === "pairs" ? [] : [`epoch-${chosenState().epoch}`])];
}

function drawAll() {
  draw("curves");
  showEpoch();
  showPairs();
  showDifference();
  data.ablations.forEach((_, place) => draw(`ablation-${place}`));
}

/** What scrolls says so and can be reached by keyboard; what does not scroll is no stop on the way. */
function markScrolling() {
  for (const box of document.querySelectorAll(".scroll, pre")) {
    const scrolls = box.scrollHeight > box.clientHeight + 1 || box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// On paper nothing can be opened, scrolled or chosen: all is open, and drawn light and as wide as the paper.
let opened = [];
function toPaper() {
  printing = true;
  document.documentElement.classList.add("printing");
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
  drawAll();
  for (const table of document.querySelectorAll("table")) { // one that is too wide is made smaller
    table.style.width = "min-content";
    const narrowest = table.offsetWidth;
    table.style.width = "";
    table.style.zoom = Math.min(1, PRINTED * PIXELS_PER_INCH / narrowest);
  }
}
function fromPaper() {
  printing = false;
  document.documentElement.classList.remove("printing");
  for (const one of opened) one.open = false;
  for (const table of document.querySelectorAll("table")) table.style.zoom = "";
  drawAll();
}

fillChoices();
chooseTrack(0);
draw("curves");
showDifference();
data.ablations.forEach((_, place) => draw(`ablation-${place}`));
for (const id of Object.keys(shown)) followMatrix(id);
element("epoch").addEventListener("input", showEpoch);
const jump = (place) => { element("epoch").value = place; showEpoch(); };
element("to-best").addEventListener("click", () => jump(bestPlace(data.tracks[chosen])));
element("to-last").addEventListener("click", () => jump(lastPlace(data.tracks[chosen])));
element("track")?.addEventListener("change", (event) => chooseTrack(Number(event.target.value)));
element("confused")?.addEventListener("change", showConfusion);
element("apart")?.addEventListener("change", () => draw("curves"));
for (const id of ["first", "second", "signs"]) element(id).addEventListener("change", showDifference);
for (const button of document.querySelectorAll("[data-inches]"))
  button.addEventListener("click", () => save(button.dataset.figure, Number(button.dataset.inches)));
const scrolling = new ResizeObserver(markScrolling);
for (const box of document.querySelectorAll(".scroll, pre")) scrolling.observe(box);
window.addEventListener("beforeprint", toPaper);
window.addEventListener("afterprint", fromPaper);
dark.addEventListener("change", () => printing || drawAll());
let width = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  if (printing || document.documentElement.clientWidth === width) return; // a phone's address bar comes and goes
  width = document.documentElement.clientWidth;
  drawAll();
});
