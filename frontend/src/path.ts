// A path in the plane, coloured from its first piece to its last, on equal axes.
import uPlot from "uplot";
import { addTools, card } from "./card";
import { Chart } from "./chart";
import { pathCss } from "./colour";
import { csv } from "./csv";
import { el } from "./dom";
import { num } from "./format";
import { Group, type Range } from "./group";
import type { Arrays, LinesPanel, Numbers, Run } from "./payload";
import { tooltip } from "./tooltip";

interface Piece {
  label: string;
  x: Numbers;
  y: Numbers;
}

const HEIGHT = 380;

export function pathCard(run: Run, panel: LinesPanel, subtitle: string, arrays: Arrays): HTMLElement {
  const pieces: Piece[] = panel.lines.map((curve) => ({
    label: curve.label,
    x: arrays.get(run, curve.x_array),
    y: arrays.get(run, curve.y_array),
  }));
  const made = card(panel.title, subtitle, panel.note);
  const tip = tooltip(made.body);
  const [x, y] = [extent(pieces.map((p) => p.x)), extent(pieces.map((p) => p.y))];
  const group = new Group(x);
  const chart = new Chart(
    {
      title: panel.title,
      height: HEIGHT,
      xLabel: panel.x_label,
      yLabel: panel.y_label,
      log: false,
      data: [x, y],
      series: [{ paths: () => null, points: { show: false } }],
      yRange: (view) => equal(view, y, made.body.clientWidth),
      over: (plot) => paint(plot, pieces),
      moved: (at, own) => {
        if (!own || at === null) return tip.hide();
        const near = nearest(chart.plot, pieces);
        return tip.show(chart.plot, [near.label, `${num(near.x)}, ${num(near.y)}`]);
      },
    },
    group,
  );
  made.body.append(chart.root);
  const stops = Array.from({ length: 9 }, (_, i) => pathCss(i / 8)).join(",");
  const bar = el("i", { class: "bar", style: `background: linear-gradient(to right, ${stops})` });
  const [first, last] = [pieces[0]!.label, pieces[pieces.length - 1]!.label];
  made.legend.append(el("span", { class: "key" }, `● ${first}`, bar, `■ ${last}`));
  const title = subtitle ? `${panel.title} · ${subtitle}` : panel.title;
  addTools(made, title, () =>
    csv(["piece", panel.x_label, panel.y_label], pieces.flatMap((p) => Array.from(p.x, (v, i) => [p.label, v, p.y[i]!]))),
  );
  return made.root;
}

function extent(arrays: Numbers[]): Range {
  let [low, high] = [Infinity, -Infinity];
  for (const array of arrays) {
    for (const v of array) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  const margin = 0.06 * (high - low) || 0.5;
  return [low - margin, high + margin];
}

/** A vertical range on the scale of the horizontal one, so that shapes are true; wider where the path needs it. */
function equal([left, right]: Range, [low, high]: Range, width: number): Range {
  const half = Math.max(((right - left) * (HEIGHT - 60)) / Math.max(width - 90, 100), high - low) / 2;
  return [(low + high) / 2 - half, (low + high) / 2 + half];
}

function paint(plot: uPlot, pieces: Piece[]): void {
  const { ctx } = plot;
  const px = uPlot.pxRatio;
  const at = (p: Piece, i: number): Range => [plot.valToPos(p.x[i]!, "x", true), plot.valToPos(p.y[i]!, "y", true)];
  ctx.lineWidth = 2 * px;
  ctx.lineJoin = ctx.lineCap = "round";
  pieces.forEach((piece, i) => {
    ctx.strokeStyle = pathCss(pieces.length > 1 ? i / (pieces.length - 1) : 0);
    ctx.beginPath();
    for (let j = 0; j < piece.x.length; j++) ctx.lineTo(...at(piece, j));
    ctx.stroke();
  });
  const last = pieces[pieces.length - 1]!;
  const [from, to] = [at(pieces[0]!, 0), at(last, last.x.length - 1)];
  ctx.fillStyle = pathCss(0);
  ctx.beginPath();
  ctx.arc(...from, 5 * px, 0, 7);
  ctx.fill();
  ctx.fillStyle = pathCss(1);
  ctx.fillRect(to[0] - 5 * px, to[1] - 5 * px, 10 * px, 10 * px);
}

function nearest(plot: uPlot, pieces: Piece[]): { label: string; x: number; y: number } {
  const [left, top] = [plot.cursor.left ?? 0, plot.cursor.top ?? 0];
  let best = { label: "", x: NaN, y: NaN, distance: Infinity };
  for (const piece of pieces) {
    for (let i = 0; i < piece.x.length; i++) {
      const [x, y] = [piece.x[i]!, piece.y[i]!];
      const distance = Math.hypot(plot.valToPos(x, "x") - left, plot.valToPos(y, "y") - top);
      if (distance < best.distance) best = { label: piece.label, x, y, distance };
    }
  }
  return best;
}
