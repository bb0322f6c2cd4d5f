// A function over a plane: shaded, with contour lines and paths over it, or as a surface that can be turned.
import uPlot from "uplot";
import { addLog, addTools, card } from "./card";
import { Chart, type Options } from "./chart";
import { hexPixel, pixel, themed, viridis, viridisCss } from "./colour";
import { evenLevels, Grid, segments } from "./contour";
import { csv } from "./csv";
import { button, el } from "./dom";
import { num } from "./format";
import { Group } from "./group";
import type { Arrays, FieldPanel, Run } from "./payload";
import { Surface } from "./surface";
import { tooltip } from "./tooltip";

const HEIGHT = 400;

/** A path, or a point where it has one place only. */
export interface Track {
  label: string;
  x: ArrayLike<number>;
  y: ArrayLike<number>;
}

/** Value → share of the colour map: NaN for what is not finite, −1 for what a log scale cannot show. */
export type Shade = (value: number) => number;

export function fieldCard(run: Run, panel: FieldPanel, subtitle: string, arrays: Arrays): HTMLElement {
  const grid = new Grid(arrays.get(run, panel.x_array), arrays.get(run, panel.y_array), arrays.get(run, panel.values_array));
  const tracks: Track[] = panel.paths.map((p) => ({ label: p.label, x: arrays.get(run, p.x_array), y: arrays.get(run, p.y_array) }));
  const made = card(panel.title, subtitle, panel.note);
  made.root.classList.add("field");
  const tip = tooltip(made.body);
  let log = panel.scale === "log" && panel.colours[0] > 0;
  const [top, bottom] = [grid.y[grid.y.length - 1]!, grid.y[0]!];
  let height = (top + bottom) / 2;

  const say = (x: number | null, own: boolean): string => {
    if (!own || x === null) return tip.hide();
    const y = chart.plot.posToVal(chart.plot.cursor.top ?? 0, "y");
    height = y;
    const value = grid.read(x, y);
    const text = Number.isNaN(value) ? "not finite" : `${panel.value_label || "value"} ${num(value)}`;
    return tip.show(chart.plot, [near(chart.plot, tracks), `${num(x, 3)}, ${num(y, 3)}`, text].filter(Boolean));
  };
  const options = (): Options => {
    const [shade, levels] = [shades(panel.colours, log), contourLevels(panel.colours, log)];
    const lines = levels.map((level) => segments(grid, level));
    return {
      title: panel.title,
      height: HEIGHT,
      xLabel: panel.x_label,
      yLabel: panel.y_label,
      log: false,
      data: [[grid.x[0]!, grid.x[grid.x.length - 1]!], [bottom, top]],
      series: [{ paths: () => null, points: { show: false } }],
      yRange: () => [bottom, top],
      over: (plot) => {
        paint(plot, grid, shade);
        for (const line of lines) stroke(plot, line);
        for (const [i, track] of tracks.entries()) trace(plot, track, i);
      },
      moved: say,
      vertical: (direction) => {
        height = Math.min(top, Math.max(bottom, height - direction * 0.02 * (top - bottom)));
        chart.raise(height);
      },
    };
  };
  const chart = new Chart(options(), new Group([grid.x[0]!, grid.x[grid.x.length - 1]!]));
  const surface = new Surface(panel, grid, tracks, HEIGHT);
  made.body.append(chart.root);
  const showKey = () => made.legend.replaceChildren(...key(panel, grid, tracks, log));
  showKey();
  addTools(made, subtitle ? `${panel.title} · ${subtitle}` : panel.title, () => toCsv(panel, grid));
  if (panel.colours[0] > 0 && panel.colours[1] > panel.colours[0]) {
    addLog(made, log, (now) => {
      log = now;
      chart.replace(options());
      surface.draw(shades(panel.colours, log), log);
      showKey();
    });
  }
  const solid = button("3-D", "Contours, or a surface to turn", () => {
    const on = solid.getAttribute("aria-pressed") !== "true";
    solid.setAttribute("aria-pressed", String(on));
    tip.hide();
    (on ? chart : surface).root.replaceWith((on ? surface : chart).root);
    if (on) surface.draw(shades(panel.colours, log), log);
  });
  solid.setAttribute("aria-pressed", "false");
  made.tools.prepend(solid);
  return made.root;
}

function shades([low, high]: [number, number], log: boolean): Shade {
  const warp = (v: number) => (log ? Math.log10(v) : v);
  const [from, to] = [warp(low), warp(high)];
  return (value) => {
    if (Number.isNaN(value)) return NaN;
    if (log && value <= 0) return -1;
    return to > from ? Math.min(1, Math.max(0, (warp(value) - from) / (to - from))) : 0;
  };
}

function contourLevels([low, high]: [number, number], log: boolean): number[] {
  if (!(high > low)) return [];
  return log ? Array.from({ length: 12 }, (_, k) => low * (high / low) ** ((k + 1) / 13)) : evenLevels(low, high);
}

function paint(plot: uPlot, grid: Grid, shade: Shade): void {
  const { left, top, width, height } = plot.bbox;
  const [w, h] = [Math.max(1, Math.round(width)), Math.max(1, Math.round(height))];
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  const palette = Uint32Array.from({ length: 256 }, (_, i) => pixel(...viridis(i / 255)));
  const [bad, missing] = [hexPixel(themed("bad")), hexPixel(themed("missing"))];
  const [sx, sy] = [plot.scales.x!, plot.scales.y!];
  for (let py = 0; py < h; py++) {
    const y = sy.max! - ((py + 0.5) / h) * (sy.max! - sy.min!);
    for (let px = 0; px < w; px++) {
      const t = shade(grid.read(sx.min! + ((px + 0.5) / w) * (sx.max! - sx.min!), y));
      pixels[py * w + px] = Number.isNaN(t) ? bad : t < 0 ? missing : palette[Math.round(255 * t)]!;
    }
  }
  const canvas = new OffscreenCanvas(w, h);
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  plot.ctx.drawImage(canvas, left, top);
}

function stroke(plot: uPlot, line: [number, number, number, number][]): void {
  const path = new Path2D();
  for (const [x0, y0, x1, y1] of line) {
    path.moveTo(plot.valToPos(x0, "x", true), plot.valToPos(y0, "y", true));
    path.lineTo(plot.valToPos(x1, "x", true), plot.valToPos(y1, "y", true));
  }
  plot.ctx.strokeStyle = "rgb(255 255 255 / 0.6)";
  plot.ctx.lineWidth = uPlot.pxRatio;
  plot.ctx.stroke(path);
}

function trace(plot: uPlot, track: Track, index: number): void {
  const places = Array.from(track.x, (x, i): [number, number] => [plot.valToPos(x, "x", true), plot.valToPos(track.y[i]!, "y", true)]);
  outline(plot.ctx, places, index, uPlot.pxRatio);
}

/** A path in the plane's path colour with a white edge; a single place is a mark. */
export function outline(ctx: CanvasRenderingContext2D, places: [number, number][], index: number, ratio: number): void {
  const path = new Path2D();
  if (places.length === 1) {
    const [x, y] = places[0]!;
    if (index % 2) path.rect(x - 4.5 * ratio, y - 4.5 * ratio, 9 * ratio, 9 * ratio);
    else path.arc(x, y, 5 * ratio, 0, 7);
  } else {
    for (const [x, y] of places) path.lineTo(x, y);
  }
  ctx.lineJoin = ctx.lineCap = "round";
  ctx.strokeStyle = "#fff";
  ctx.lineWidth = 3.5 * ratio;
  ctx.stroke(path);
  ctx.strokeStyle = ctx.fillStyle = TRACK;
  ctx.lineWidth = 2 * ratio;
  if (places.length === 1) ctx.fill(path);
  else ctx.stroke(path);
}

/** Vermilion stands out of every colour of viridis. */
const TRACK = "#d55e00";

/** The track nearest to the pointer, where it is within a few pixels. */
function near(plot: uPlot, tracks: Track[]): string {
  const [left, top] = [plot.cursor.left ?? 0, plot.cursor.top ?? 0];
  let [label, best] = ["", 10];
  for (const track of tracks) {
    for (let i = 0; i < track.x.length; i++) {
      const distance = Math.hypot(plot.valToPos(track.x[i]!, "x") - left, plot.valToPos(track.y[i]!, "y") - top);
      if (distance < best) [label, best] = [track.label, distance];
    }
  }
  return label;
}

function key(panel: FieldPanel, grid: Grid, tracks: Track[], log: boolean): HTMLElement[] {
  const [low, high] = panel.colours;
  const stops = Array.from({ length: 9 }, (_, i) => viridisCss(i / 8)).join(",");
  const bar = el("i", { class: "bar", style: `background: linear-gradient(to right, ${stops})` });
  const finite = grid.values.some((v) => !Number.isNaN(v));
  const scale = high > low ? el("span", { class: "key" }, num(low, 2), bar, `≥ ${num(high, 2)}`) : el("span", { class: "key" }, `${num(low)} everywhere`);
  scale.append(el("span", { class: "unit" }, `${panel.value_label}${log ? ", log" : ""}`));
  const keys = finite ? [scale] : [];
  for (const [i, { label, x }] of tracks.entries()) {
    const shape = x.length > 1 ? "line" : i % 2 ? "square" : "points";
    keys.push(el("span", { class: "key", "data-key": label }, el("i", { class: shape, style: `--swatch: ${TRACK}` }), label));
  }
  if (grid.values.some((v) => Number.isNaN(v))) {
    keys.push(el("span", { class: "key", "data-key": "not finite" }, el("i", { class: "bad" }), "not finite"));
  }
  return keys;
}

function toCsv(panel: FieldPanel, grid: Grid): string {
  const rows = Array.from(grid.y, (y, i) => Array.from(grid.x, (x, j) => [x, y, Number.isNaN(grid.at(i, j)) ? null : grid.at(i, j)]));
  return csv([panel.x_label, panel.y_label, panel.value_label || "value"], rows.flat());
}
