// A function over a plane in three dimensions: turned by dragging or by arrow keys, nearer parts drawn over farther ones.
import { themed, viridis } from "./colour";
import type { Grid } from "./contour";
import { el } from "./dom";
import type { Shade, Track } from "./field";
import { outline } from "./field";
import { num } from "./format";
import type { FieldPanel } from "./payload";
import { onTheme } from "./theme";

/** Most columns and rows that are drawn: 3600 cells turn smoothly. */
const SIDE = 60;
/** Height of the box over its width. */
const TALL = 0.7;

type Point = [number, number];

export class Surface {
  readonly root: HTMLElement;
  private readonly canvas = el("canvas");
  private turn = -0.65;
  private tilt = 0.55;
  private shade: Shade = () => 0;
  private log = false;
  private readonly rows: number[];
  private readonly columns: number[];

  constructor(
    private readonly panel: FieldPanel,
    private readonly grid: Grid,
    private readonly tracks: Track[],
    private readonly height: number,
  ) {
    this.rows = thinned(grid.y.length);
    this.columns = thinned(grid.x.length);
    this.root = el("div", { class: "plot surface", tabindex: "0", role: "img" }, this.canvas);
    this.root.setAttribute("aria-label", `${panel.title}, surface. Drag or use the arrow keys to turn it.`);
    this.canvas.style.height = `${height}px`;
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointerdown", (event) => this.canvas.setPointerCapture(event.pointerId));
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.rotate(0.008 * event.movementX, 0.006 * event.movementY);
    });
    onTheme(() => this.paint());
    new ResizeObserver(() => this.paint()).observe(this.root);
  }

  draw(shade: Shade, log: boolean): void {
    this.shade = shade;
    this.log = log;
    this.paint();
  }

  private rotate(turn: number, tilt: number): void {
    this.turn += turn;
    this.tilt = Math.min(1.5, Math.max(0.05, this.tilt + tilt));
    this.paint();
  }

  private key(event: KeyboardEvent): void {
    const keys: Record<string, Point> = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.08], ArrowDown: [0, 0.08] };
    const by = keys[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.rotate(...by);
  }

  /** From a place in the box, each side −1 to 1, height 0 to 1, to the canvas. */
  private project(x: number, y: number, z: number): Point {
    const { width, height } = this.canvas;
    const [cos, sin] = [Math.cos(this.turn), Math.sin(this.turn)];
    const [across, depth] = [x * cos - y * sin, x * sin + y * cos];
    const up = depth * Math.sin(this.tilt) + (2 * z - 1) * TALL * Math.cos(this.tilt);
    const scale = Math.min(width / 3.2, height / 2.75);
    return [width / 2 + scale * across, height / 2 - scale * up];
  }

  private paint(): void {
    const width = this.root.clientWidth;
    if (!width) return;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const ctx = this.canvas.getContext("2d")!;
    ctx.fillStyle = themed("card");
    ctx.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.box(ctx, ratio);
    this.cells(ctx, ratio);
    for (const [i, track] of this.tracks.entries()) {
      const places = Array.from(track.x, (x, k) => this.onSurface(x, track.y[k]!)).filter((p) => p !== null);
      if (places.length) outline(ctx, places, i, ratio);
    }
  }

  private onSurface(x: number, y: number): Point | null {
    const t = this.shade(this.grid.read(x, y));
    return t >= 0 ? this.project(share(this.grid.x, x), share(this.grid.y, y), t) : null;
  }

  private cells(ctx: CanvasRenderingContext2D, ratio: number): void {
    const { grid, rows, columns } = this;
    const shades = rows.map((i) => columns.map((j) => this.shade(grid.at(i, j))));
    const places = rows.map((i, a) =>
      columns.map((j, b) => this.project(share(grid.x, grid.x[j]!), share(grid.y, grid.y[i]!), shades[a]![b]!)),
    );
    // A height field seen from outside is right when rows and columns are drawn from the far side to the near one.
    const [far, deep] = [Math.cos(this.turn) > 0, Math.sin(this.turn) > 0];
    const order = (count: number, back: boolean) => Array.from({ length: count - 1 }, (_, k) => (back ? count - 2 - k : k));
    ctx.lineWidth = 0.6 * ratio;
    for (const a of order(rows.length, far)) {
      for (const b of order(columns.length, deep)) {
        const corners = [[a, b], [a, b + 1], [a + 1, b + 1], [a + 1, b]] as Point[];
        const heights = corners.map(([i, j]) => shades[i]![j]!);
        if (!heights.every((t) => t >= 0)) continue;
        // Light from the left front tells slopes apart where colours are alike.
        const slope = (heights[1]! + heights[2]! - heights[0]! - heights[3]!) * columns.length * 0.05;
        const light = Math.min(1.12, Math.max(0.72, 1 - 0.25 * slope));
        const [red, green, blue] = viridis(heights.reduce((sum, t) => sum + t, 0) / 4).map((c) => Math.min(255, c * light));
        ctx.fillStyle = ctx.strokeStyle = `rgb(${red} ${green} ${blue})`;
        ctx.beginPath();
        for (const [i, j] of corners) ctx.lineTo(...places[i]![j]!);
        ctx.closePath();
        ctx.fill();
        ctx.stroke(); // closes the hairlines between neighbours
      }
    }
  }

  /** The floor with its ends, and a rule of the heights on the side edge. */
  private box(ctx: CanvasRenderingContext2D, ratio: number): void {
    const { grid, panel } = this;
    const floor = [[-1, -1], [1, -1], [1, 1], [-1, 1]] as Point[];
    ctx.strokeStyle = themed("edge");
    ctx.lineWidth = ratio;
    ctx.beginPath();
    for (const [x, y] of [...floor, floor[0]!]) ctx.lineTo(...this.project(x, y, 0));
    ctx.stroke();
    ctx.fillStyle = themed("muted");
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    const write = (text: string, x: number, y: number, z: number, down = 14) => {
      const [left, top] = this.project(x, y, z);
      ctx.fillText(text, left, top + down * ratio);
    };
    const nearY = Math.cos(this.turn) > 0 ? -1 : 1;
    const nearX = Math.sin(this.turn) > 0 ? -1 : 1;
    const ends = (values: ArrayLike<number>): Point => [values[0]!, values[values.length - 1]!];
    const [x, y] = [ends(grid.x), ends(grid.y)];
    write(num(x[0], 3), -0.9, nearY * 1.08, 0);
    write(num(x[1], 3), 0.9, nearY * 1.08, 0);
    write(letter(panel.x_label), 0, nearY * 1.08, 0);
    write(num(y[0], 3), nearX * 1.08, -0.9, 0);
    write(num(y[1], 3), nearX * 1.08, 0.9, 0);
    write(letter(panel.y_label), nearX * 1.08, 0, 0);
    const sides = floor.map(([a, b]): [number, Point] => [this.project(a, b, 0)[0], [a, b]]);
    const [, [ex, ey]] = sides.reduce((best, side) => (side[0] < best[0] ? side : best));
    ctx.beginPath();
    ctx.moveTo(...this.project(ex, ey, 0));
    ctx.lineTo(...this.project(ex, ey, 1));
    ctx.stroke();
    ctx.textAlign = "right";
    const [low, high] = panel.colours;
    const middle = this.log ? Math.sqrt(low * high) : (low + high) / 2;
    for (const [value, z] of [[low, 0], [middle, 0.5], [high, 1]] as Point[]) write(`${num(value, 2)}  `, ex, ey, z, 4);
  }
}

/** The first word of an axis, such as α: the rest stands beneath the contours. */
function letter(label: string): string {
  return label.split(" ")[0] ?? "";
}

function share(ends: ArrayLike<number>, at: number): number {
  const [low, high] = [ends[0]!, ends[ends.length - 1]!];
  return high > low ? (2 * (at - low)) / (high - low) - 1 : 0;
}

function thinned(count: number): number[] {
  const kept = Math.min(count, SIDE);
  return Array.from({ length: kept }, (_, k) => (kept > 1 ? Math.round((k * (count - 1)) / (kept - 1)) : 0));
}
