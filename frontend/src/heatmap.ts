// A matrix over steps and layers: viridis, one cell per measured or pooled step, first layer on top.
import type uPlot from "uplot";
import { addLog, addTools, card } from "./card";
import { Chart, type Options } from "./chart";
import { hexPixel, pixel, themed, viridis, viridisCss } from "./colour";
import { csv } from "./csv";
import { el } from "./dom";
import { num, short } from "./format";
import { Group } from "./group";
import type { Arrays, HeatPanel, Numbers, Run } from "./payload";
import { endsEarly } from "./sparse";
import { tooltip } from "./tooltip";

const MISSING = 0;
const BAD = 1;

export class Cells {
  readonly columns: number;
  /** Step at which each cell begins, and at last where the last one ends. */
  readonly x: Numbers;
  private readonly codes: Numbers;

  constructor(readonly panel: HeatPanel, run: Run, arrays: Arrays) {
    this.x = arrays.get(run, panel.x_array);
    this.codes = arrays.get(run, panel.codes_array);
    this.columns = this.x.length - 1;
  }

  code(row: number, column: number): number {
    return this.codes[row * this.columns + column]!;
  }

  /** One code for the cells of rows [upper, lower) and columns [first, last]. */
  pool(upper: number, lower: number, first: number, last: number): number {
    let [most, sum, count] = [MISSING, 0, 0];
    for (let row = upper; row < lower; row++) {
      for (let column = first; column <= last; column++) {
        const code = this.code(row, column);
        if (code === BAD) return BAD;
        if (code === MISSING) continue;
        most = Math.max(most, code);
        sum += code;
        count++;
      }
    }
    // Means are taken of linear maps only, whose codes are linear in their values.
    return this.panel.by === "mean" && count ? Math.round(sum / count) : most;
  }

  /** The value of a code: NaN for none, Infinity where it was not finite. */
  value(code: number): number {
    if (code === MISSING) return NaN;
    if (code === BAD) return Infinity;
    const { span, scale, codes } = this.panel;
    const [low, high] = scale === "log" ? [Math.log10(span[0]), Math.log10(span[1])] : span;
    const at = low + ((code - 2) / (codes - 2)) * (high - low);
    return scale === "log" ? 10 ** at : at;
  }

  /** The cell that a step falls into. */
  column(step: number): number {
    let [low, high] = [0, this.columns];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.x[middle]! <= step) low = middle;
      else high = middle;
    }
    return low;
  }
}

export function heatCard(run: Run, panel: HeatPanel, colours: [number, number], subtitle: string, arrays: Arrays, group: Group): HTMLElement {
  const cells = new Cells(panel, run, arrays);
  const pooled = panel.pooled > 1 ? ` Each cell is the ${panel.by === "max" ? "largest" : "mean"} of up to ${panel.pooled} measured steps.` : "";
  // Pooled cells count several measurements each; they are too many to end early.
  const ends = pooled ? "" : endsEarly(cells.columns, cells.x[cells.columns - 1]!, group.full);
  const made = card(panel.title, subtitle, [panel.note + pooled, ends].filter(Boolean).join(" "));
  made.root.classList.add("heat");
  let log = panel.scale === "log" && colours[0] > 0;
  let row: number | null = null;
  const tip = tooltip(made.body);
  const count = panel.rows.length;

  const say = (x: number | null, own: boolean) => {
    if (!own || x === null || x < cells.x[0]! || x > cells.x[cells.columns]!) return tip.hide();
    const place = chart.plot.posToVal(chart.plot.cursor.top ?? 0, "y");
    const line = Math.min(count - 1, Math.max(0, Math.floor(place)));
    row = line;
    const column = cells.column(x);
    const last = Math.max(cells.x[column]!, cells.x[column + 1]! - 1);
    const steps = panel.pooled > 1 && last > cells.x[column]! ? `steps ${cells.x[column]}–${last}` : `${panel.x_label} ${num(cells.x[column]!)}`;
    const value = cells.value(cells.code(line, column));
    const text = Number.isNaN(value) ? "no value" : Number.isFinite(value) ? num(value) : "not finite";
    return tip.show(chart.plot, [steps, panel.rows[line]!, text]);
  };
  const options = (): Options => {
    const palette = table(cells, colours, log);
    return {
      title: panel.title,
      height: Math.min(560, Math.max(150, 50 + 15 * count)),
      xLabel: panel.x_label,
      yLabel: "",
      log: false,
      data: [[cells.x[0]!, cells.x[cells.columns]!], [0, count]],
      series: [{ paths: () => null, points: { show: false } }],
      yRange: () => [0, count],
      yDown: true,
      yAxis: rowAxis(panel.rows),
      over: (plot) => paint(plot, cells, palette()),
      moved: say,
      vertical: (direction) => {
        row = Math.min(count - 1, Math.max(0, row === null ? 0 : row + direction));
        chart.raise(row + 0.5);
      },
    };
  };
  const chart = new Chart(options(), group);
  made.body.append(chart.root);
  const showKey = () => made.legend.replaceChildren(...key(panel, colours, log));
  showKey();
  addTools(made, subtitle ? `${panel.title} · ${subtitle}` : panel.title, () => toCsv(cells, group));
  if (colours[0] > 0) {
    addLog(made, log, (now) => {
      log = now;
      chart.replace(options());
      showKey();
    });
  }
  return made.root;
}

/** Code → pixel, made anew when colours of the page change. */
function table(cells: Cells, [low, high]: [number, number], log: boolean): () => Uint32Array {
  const warp = (v: number) => (log ? Math.log10(v) : v);
  const [from, to] = [warp(low), warp(high)];
  const made = new Uint32Array(cells.panel.codes + 1);
  for (let code = 2; code < made.length; code++) {
    const value = cells.value(code);
    const t = to > from ? (warp(value) - from) / (to - from) : 0;
    made[code] = log && value <= 0 ? 0 : pixel(...viridis(t));
  }
  return () => {
    made[MISSING] = hexPixel(themed("missing"));
    made[BAD] = hexPixel(themed("bad"));
    return made;
  };
}

/**
 * One pixel column per screen column. Cells that share a pixel are pooled as those within a cell were: by maximum or
 * mean; one that is not finite colours the whole pixel.
 */
function paint(plot: uPlot, cells: Cells, palette: Uint32Array): void {
  const { left, top, width, height } = plot.bbox;
  const rows = cells.panel.rows.length;
  const [w, h] = [Math.max(1, Math.round(width)), Math.max(1, Math.min(rows, Math.round(height)))];
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  const { min, max } = plot.scales.x!;
  const [start, end] = [cells.x[0]!, cells.x[cells.columns]!];
  for (let px = 0; px < w; px++) {
    const from = min! + (px / w) * (max! - min!);
    const to = min! + ((px + 1) / w) * (max! - min!);
    if (to <= start || from >= end) continue;
    const first = cells.column(from);
    const last = Math.max(first, cells.column(to - (to - from) * 1e-6));
    for (let py = 0; py < h; py++) {
      const upper = Math.floor((py * rows) / h);
      const lower = Math.max(upper + 1, Math.floor(((py + 1) * rows) / h));
      pixels[py * w + px] = palette[cells.pool(upper, lower, first, last)]!;
    }
  }
  const canvas = new OffscreenCanvas(w, h);
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  plot.ctx.imageSmoothingEnabled = false;
  plot.ctx.drawImage(canvas, left, top, width, height);
}

function rowAxis(rows: string[]): uPlot.Axis {
  const names = rows.map((name) => short(name));
  return {
    grid: { show: false },
    ticks: { show: false },
    splits: (plot) => {
      const every = Math.max(1, Math.ceil((rows.length * 13) / (plot.bbox.height / devicePixelRatio)));
      return rows.map((_, i) => i + 0.5).filter((_, i) => i % every === 0);
    },
    values: (_, splits) => splits.map((at) => names[Math.floor(at)] ?? ""),
  };
}

function key(panel: HeatPanel, [low, high]: [number, number], log: boolean): HTMLElement[] {
  const stops = Array.from({ length: 9 }, (_, i) => viridisCss(i / 8)).join(",");
  const bar = el("i", { class: "bar", style: `background: linear-gradient(to right, ${stops})` });
  const scale = high > low ? el("span", { class: "key" }, num(low, 2), bar, num(high, 2)) : constant(low);
  scale.append(el("span", { class: "unit" }, `${panel.value_label}${log ? ", log" : ""}`));
  const swatch = (name: string, text: string) =>
    el("span", { class: "key", "data-key": text }, el("i", { class: name }), text);
  const keys = panel.empty ? [] : [scale];
  if (panel.bad) keys.push(swatch("bad", "not finite"));
  if (panel.missing) keys.push(swatch("missing", "no value"));
  return keys;
}

function constant(value: number): HTMLElement {
  const swatch = el("i", { class: "flat", style: `background: ${viridisCss(0)}` });
  return el("span", { class: "key" }, swatch, `${num(value)} everywhere`);
}

function toCsv(cells: Cells, group: Group): string {
  const [low, high] = group.view;
  const rows = [];
  for (let column = 0; column < cells.columns; column++) {
    if (cells.x[column + 1]! <= low || cells.x[column]! > high) continue;
    const values = cells.panel.rows.map((_, row) => cells.value(cells.code(row, column)));
    rows.push([cells.x[column]!, ...values.map((v) => (Number.isNaN(v) ? null : Number(v.toPrecision(4))))]);
  }
  return csv([cells.panel.x_label, ...cells.panel.rows], rows);
}
