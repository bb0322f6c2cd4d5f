// Curves of one panel, of one run or of several laid over each other.
import uPlot from "uplot";
import { addLog, addTools, card } from "./card";
import { Chart, type Options } from "./chart";
import { LINE_COLOURS, lineColour, themed } from "./colour";
import { csv } from "./csv";
import { el } from "./dom";
import { num, where } from "./format";
import { Group, type Range } from "./group";
import { logSplits } from "./log";
import type { Arrays, Curve, LinesPanel, Numbers, Run } from "./payload";
import { apart, endsEarly } from "./sparse";

interface Drawn {
  curve: Curve;
  label: string;
  x: Numbers;
  y: Numbers;
  colour: number;
  /** Which dash tells curves of one run apart where colours stand for runs. */
  dash: number;
}

const DASHES = [[], [7, 3], [2, 3], [8, 3, 2, 3]];

export function xRange(panel: LinesPanel, run: Run, arrays: Arrays): Range | null {
  const ends = panel.lines.map((curve) => places(panel, run, curve, arrays)[0]).filter((x) => x.length);
  if (!ends.length) return null;
  return [Math.min(...ends.map((x) => x[0]!)), Math.max(...ends.map((x) => x[x.length - 1]!))];
}

/** x and y of a curve; on a logarithmic axis x is its logarithm, so that zoom and keys move evenly. */
function places(panel: LinesPanel, run: Run, curve: Curve, arrays: Arrays): [Numbers, Numbers] {
  const [x, y] = [arrays.get(run, curve.x_array), arrays.get(run, curve.y_array)];
  if (panel.x_scale !== "log") return [x, y];
  const kept = Array.from(x, (_, i) => i).filter((i) => x[i]! > 0);
  return [Float64Array.from(kept, (i) => Math.log10(x[i]!)), Float64Array.from(kept, (i) => y[i]!)];
}

export function linesCard(panels: [Run, LinesPanel][], overlay: boolean, arrays: Arrays, group: Group): HTMLElement {
  const first = panels[0]![1];
  const drawn = onceEach(panels.flatMap(([run, panel]) => curves(run, panel, overlay, arrays)));
  const signed = drawn.some(({ y }) => y.some((v) => v < 0));
  const [xLog, steps] = [first.x_scale === "log", first.x_label === "step"];
  const warp = (x: number) => (xLog ? Math.log10(x) : x);
  const back = (x: number) => (xLog ? 10 ** x : x);
  const bad = panels.flatMap(([, panel]) => panel.bad).map(([from, to]): Range => [warp(from), warp(to)]);
  const marks = new Map(panels.flatMap(([, panel]) => Object.entries(panel.marks).map(([name, x]) => [name, warp(x)] as const)));
  const spans = panels.flatMap(([, panel]) =>
    Object.entries(panel.spans).map(([name, [from, to]]): Span => [name, warp(from), warp(to)]),
  );
  const notes = [...new Set(panels.map(([, panel]) => panel.note))].filter(Boolean);
  const measured = drawn.filter((d) => d.curve.style !== "dashed" && d.x.length);
  const last = Math.max(...measured.map(({ x }) => x[x.length - 1]!));
  const ends = steps ? endsEarly(Math.max(...measured.map((d) => d.curve.points)), last, group.full) : "";
  const made = card(first.title, "", [notes.length === 1 ? notes[0]! : "", ends].filter(Boolean).join(" "));
  let log = panels.some(([, panel]) => panel.scale === "log") && drawn.some((d) => positive(d.y));
  const at = el("span", { class: "at" });
  const shown = drawn.map(() => true);
  const values = drawn.map((d, i) =>
    entry(d, (show) => {
      shown[i] = show;
      chart.plot.setSeries(i + 1, { show });
    }),
  );
  made.legend.append(...values.map((v) => v.root));
  if (bad.length) {
    made.legend.append(el("span", { class: "key", "data-key": "not finite" }, el("i", { class: "bad" }), "not finite"));
  }
  made.legend.append(at);

  const options = (): Options => ({
    title: first.title,
    height: 240,
    xLabel: first.x_label,
    yLabel: first.y_label,
    log,
    data: table(drawn, log),
    series: drawn.map((d, i) => series(d, shown[i]!)),
    ...(xLog ? { xAxis: LOG_X } : {}),
    over: (plot) => {
      paintSpans(plot, spans);
      paintBad(plot, bad);
      paintMarks(plot, marks);
    },
    moved: (x) => read(x),
  });
  const read = (x: number | null): string => {
    // Away from the plot the legend tells how the curves end.
    const place = x === null ? "" : `${first.x_label} ${steps ? where(x) : num(back(x))}`;
    at.textContent = place;
    const words = drawn.map((d, i) => {
      const text = d.curve.style === "dashed" ? "" : num(valueAt(d, x));
      values[i]!.value(text);
      return text && shown[i] ? `${d.label} ${text}` : "";
    });
    return [place, ...words].filter(Boolean).join(", ");
  };
  const chart = new Chart(options(), group);
  made.body.append(chart.root);
  read(null);
  addTools(made, first.title, () => toCsv(first.x_label, drawn, group.view, back));
  if (!signed && drawn.some((d) => positive(d.y))) {
    addLog(made, log, (now) => {
      log = now;
      chart.replace(options());
    });
  }
  return made.root;
}

function curves(run: Run, panel: LinesPanel, overlay: boolean, arrays: Arrays): Drawn[] {
  const runs = overlay ? run.name : "";
  let solid = 0;
  return panel.lines.map((curve) => {
    const own = solid;
    if (curve.style === "line" || curve.style === "points") solid++;
    const [x, y] = places(panel, run, curve, arrays);
    return {
      curve,
      label: runs && curve.style !== "dashed" ? `${runs} · ${curve.label}` : curve.label,
      x,
      y,
      colour: overlay ? run.index : own,
      dash: overlay ? own : 0,
    };
  });
}

/** A reference that several runs have, such as a threshold, is drawn once, as long as the longest. */
function onceEach(drawn: Drawn[]): Drawn[] {
  const references = new Map<string, Drawn>();
  for (const d of drawn) {
    if (d.curve.style !== "dashed") continue;
    const known = references.get(d.label);
    if (!known || d.x[d.x.length - 1]! > known.x[known.x.length - 1]!) references.set(d.label, d);
  }
  return drawn.filter((d) => d.curve.style !== "dashed" || references.get(d.label) === d);
}

function positive(y: Numbers): boolean {
  return y.some((v) => v > 0 && Number.isFinite(v));
}

function table(drawn: Drawn[], log: boolean): uPlot.AlignedData {
  const tables = drawn.map(({ x, y }): uPlot.AlignedData => {
    const shown = Array.from(y, (v) => (Number.isFinite(v) && (!log || v > 0) ? v : null));
    return [Array.from(x), shown];
  });
  return uPlot.join(tables);
}

function series(d: Drawn, show: boolean): uPlot.Series {
  const reference = d.curve.style === "dashed";
  const stroke = () => (reference ? themed("muted") : lineColour(d.colour));
  return {
    label: d.label,
    show,
    stroke,
    width: d.curve.style === "faint" || reference ? 1 : 1.7,
    alpha: d.curve.style === "faint" ? 0.35 : 1,
    dash: reference ? [5, 4] : DASHES[d.dash % DASHES.length]!,
    points: reference || d.curve.style === "faint" ? { show: false } : marked(d.curve, stroke),
  };
}

/** Values few and far between are marked one by one: a line alone would pass for a value at every step. */
function marked(curve: Curve, stroke: () => string): uPlot.Series.Points {
  const each = curve.style === "points" && curve.points <= 200;
  return { show: true, size: each ? 6 : 5, fill: stroke, stroke, ...(each ? {} : { filter: apart }) };
}

function entry(d: Drawn, toggle: (show: boolean) => void): { root: HTMLElement; value: (text: string) => void } {
  const number = el("b");
  const mark = d.dash && d.curve.style !== "dashed" ? "dash" : d.curve.style;
  const swatch = el("i", { class: mark, style: `--swatch: var(--line-${d.colour % LINE_COLOURS})` });
  const root = el("button", { type: "button", class: "key", "data-key": d.label, "aria-pressed": "true" });
  root.title = "Show or hide this curve";
  root.append(swatch, d.label, number);
  root.addEventListener("click", () => {
    const show = root.classList.contains("off");
    root.classList.toggle("off", !show);
    root.setAttribute("aria-pressed", String(show));
    toggle(show);
  });
  return { root, value: (text) => (number.textContent = text) };
}

/** The value nearest to x; the last one without x. */
function valueAt({ x, y }: Drawn, at: number | null): number {
  if (at === null || !x.length) return y.length ? y[y.length - 1]! : NaN;
  let [low, high] = [0, x.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle]! <= at) low = middle;
    else high = middle;
  }
  return y[at - x[low]! <= x[high]! - at ? low : high]!;
}

function paintBad(plot: uPlot, bad: [number, number][]): void {
  const { top, height } = plot.bbox;
  // One path for all: where intervals of several runs overlap, the shade stays the same.
  const [band, strip] = [new Path2D(), new Path2D()];
  for (const [from, to] of bad) {
    const left = plot.valToPos(from, "x", true);
    const width = Math.max(2 * uPlot.pxRatio, plot.valToPos(to, "x", true) - left);
    band.rect(left, top, width, height);
    strip.rect(left, top, width, 4 * uPlot.pxRatio);
  }
  plot.ctx.fillStyle = themed("bad");
  plot.ctx.fill(strip);
  plot.ctx.globalAlpha = 0.14;
  plot.ctx.fill(band);
}

/** A name and the stretch that it stands for. */
type Span = [string, number, number];
const SPAN_ROWS = 4;

/** Shaded stretches with their names at the bottom, beneath each other where they would meet. */
function paintSpans(plot: uPlot, spans: readonly Span[]): void {
  const { ctx } = plot;
  const { top, height } = plot.bbox;
  const px = uPlot.pxRatio;
  ctx.fillStyle = themed("warn");
  ctx.font = `${10 * px}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  spans.forEach(([name, from, to], row) => {
    const left = plot.valToPos(from, "x", true);
    const width = Math.max(2 * px, plot.valToPos(to, "x", true) - left);
    ctx.globalAlpha = 0.12;
    ctx.fillRect(left, top, width, height);
    ctx.globalAlpha = 1;
    ctx.fillText(name, left + 3 * px, top + height - (5 + 12 * (row % SPAN_ROWS)) * px);
  });
}

const LOG_X: uPlot.Axis = {
  splits: (plot, _, min, max) => logSplits(10 ** min, 10 ** max, plot.bbox.width / devicePixelRatio / 60).map(Math.log10),
  values: (_, splits) => splits.map((v) => num(10 ** v, 3)),
};

/** Dotted lines with their names, beside each other where they would meet. */
function paintMarks(plot: uPlot, marks: ReadonlyMap<string, number>): void {
  const { ctx } = plot;
  const { top, height } = plot.bbox;
  const px = uPlot.pxRatio;
  ctx.globalAlpha = 1;
  ctx.strokeStyle = ctx.fillStyle = themed("muted");
  ctx.lineWidth = px;
  ctx.font = `${11 * px}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  for (const [name, x] of marks) {
    const left = plot.valToPos(x, "x", true);
    ctx.setLineDash([2 * px, 3 * px]);
    ctx.beginPath();
    ctx.moveTo(left, top);
    ctx.lineTo(left, top + height);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.save();
    ctx.translate(left + 12 * px, top + 6 * px);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText(name, 0, 0);
    ctx.restore();
  }
}

function toCsv(xLabel: string, drawn: Drawn[], [low, high]: Range, back: (x: number) => number): string {
  const [x, ...ys] = table(drawn, false);
  const rows = Array.from(x!, (v, i) => [v as number, ...ys.map((y) => (y[i] ?? null) as number | null)]);
  return csv(
    [xLabel, ...drawn.map((d) => d.label)],
    rows.filter((row) => row[0]! >= low && row[0]! <= high).map(([at, ...ys]) => [back(at!), ...ys]),
  );
}
