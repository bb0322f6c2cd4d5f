// What all charts have in common: axes, cross-hair, zoom by drag, keys, size and colours. uPlot draws; what a chart
// shows comes in as series, or as something painted over them.
import uPlot from "uplot";
import { themed } from "./colour";
import { el } from "./dom";
import { tick } from "./format";
import type { Group, Member } from "./group";
import { LOG_AXIS, logRange } from "./log";
import { onTheme } from "./theme";

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

export interface Options {
  title: string;
  height: number;
  xLabel: string;
  yLabel: string;
  log: boolean;
  data: uPlot.AlignedData;
  series: uPlot.Series[];
  /** Fixed vertical range; by default that of the series in view. */
  yRange?: (view: [number, number]) => [number, number];
  /** Replaces parts of the horizontal axis. */
  xAxis?: uPlot.Axis;
  /** Replaces parts of the vertical axis. */
  yAxis?: uPlot.Axis;
  yDown?: boolean;
  /** Paints over axes and series. */
  over?: (plot: uPlot) => void;
  /** The cross-hair moved; `own`: the pointer is in this chart, at `plot.cursor.top`. Returns what is there, in words. */
  moved: (x: number | null, own: boolean) => string;
  /** Up (−1) and down (1) keys. */
  vertical?: (direction: number) => void;
}

export class Chart implements Member {
  readonly root = el("div", { class: "plot" });
  /** Read aloud to those who do not see the cross-hair. */
  private readonly status = el("div", { class: "offscreen", role: "status" });
  plot: uPlot;

  constructor(
    private options: Options,
    private readonly group: Group,
  ) {
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-roledescription", "chart");
    this.root.setAttribute("aria-label", `${options.title}. Arrow keys read values, plus and minus zoom, 0 resets.`);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.append(this.status);
    this.plot = this.made();
    group.join(this);
    onTheme(() => this.plot.redraw());
    new ResizeObserver(() => this.fit()).observe(this.root);
  }

  /** Draws something else, from the start. */
  replace(options: Options): void {
    this.options = options;
    this.plot.destroy();
    this.plot = this.made();
  }

  viewed(): void {
    const [min, max] = this.group.view;
    // At once: uPlot would wait for a microtask, and the cross-hair is placed right after.
    this.plot.batch(() => this.plot.setScale("x", { min, max }));
  }

  pointed(x: number | null, own: boolean): void {
    const left = x === null ? -10 : this.plot.valToPos(x, "x");
    const top = Math.max(0, this.plot.cursor.top ?? 0);
    if (!own || left !== this.plot.cursor.left) this.plot.setCursor({ left, top }, false);
    const words = this.options.moved(x, own);
    if (own) this.status.textContent = words;
  }

  private made(): uPlot {
    const { options, group } = this;
    const grid = { stroke: () => themed("grid"), width: 1 };
    const axis: uPlot.Axis = { stroke: () => themed("muted"), grid, ticks: { ...grid, size: 4 }, font: FONT, labelFont: FONT };
    const yScale: uPlot.Scale = options.log
      ? { distr: 3, range: logRange }
      : { distr: 1, dir: options.yDown ? -1 : 1, range: linearRange };
    const { yRange } = options;
    if (yRange) yScale.range = () => yRange(group.view);
    return new uPlot(
      {
        width: Math.max(this.root.clientWidth, 200),
        height: options.height,
        series: [{}, ...options.series],
        scales: { x: { time: false, range: () => group.view }, y: yScale },
        axes: [
          { ...axis, label: options.xLabel, labelSize: 18, size: 28, gap: 4, values: ticks, ...options.xAxis },
          {
            ...axis,
            label: options.yLabel || undefined,
            labelSize: 18,
            size: width,
            gap: 4,
            ...(options.log ? LOG_AXIS : { values: ticks }),
            ...options.yAxis,
          },
        ],
        padding: [8, 14, 0, 4],
        legend: { show: false },
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
          bind: { dblclick: () => () => (group.zoom(null), null) },
        },
        hooks: {
          draw: [(plot) => clipped(plot, options.over)],
          setSelect: [(plot) => this.selected(plot)],
          setCursor: [(plot) => this.hovered(plot)],
          ready: [(plot) => plot.over.addEventListener("mouseleave", () => group.point(null, this))],
        },
      },
      options.data,
      this.root,
    );
  }

  private selected(plot: uPlot): void {
    const { left, width } = plot.select;
    if (width < 4) return;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.group.zoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
  }

  private hovered(plot: uPlot): void {
    // uPlot also reports a cursor that stood still while the axis moved beneath it.
    const left = plot.cursor.left ?? -10;
    if (plot.over.matches(":hover")) this.group.point(left < 0 ? null : plot.posToVal(left, "x"), this);
  }

  /** Puts the cross-hair at a height, for those who have no pointer. */
  raise(y: number): void {
    const x = this.group.cursor ?? this.group.view[0];
    this.plot.setCursor({ left: this.plot.valToPos(x, "x"), top: this.plot.valToPos(y, "y") }, false);
    this.group.point(x, this);
  }

  private fit(): void {
    const width = this.root.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.options.height });
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.root) return;
    const step = event.shiftKey ? 0.1 : 0.01;
    const keys: Record<string, () => void> = {
      ArrowLeft: () => this.group.nudge(-step, this),
      ArrowRight: () => this.group.nudge(step, this),
      "+": () => this.group.scale(0.5),
      "=": () => this.group.scale(0.5),
      "-": () => this.group.scale(2),
      "0": () => this.group.zoom(null),
      Escape: () => this.group.point(null, this),
    };
    const { vertical } = this.options;
    if (vertical) {
      keys.ArrowUp = () => vertical(-1);
      keys.ArrowDown = () => vertical(1);
    }
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

/** uPlot's own range, but for values that are all zero, which it would show on an axis up to 100. */
function linearRange(_: uPlot, min: number | null, max: number | null): uPlot.Range.MinMax {
  if (min === null || max === null) return [null, null];
  return min === 0 && max === 0 ? [0, 1] : uPlot.rangeNum(min, max, 0.1, true);
}

function ticks(_: uPlot, splits: (number | null)[]): string[] {
  const numbers = splits.filter((v): v is number => v !== null);
  let least = Infinity;
  for (let i = 1; i < numbers.length; i++) least = Math.min(least, Math.abs(numbers[i]! - numbers[i - 1]!));
  if (!Number.isFinite(least)) least = Math.abs(numbers[0] ?? 1) || 1;
  return splits.map((v) => (v === null ? "" : tick(v, least)));
}

function width(plot: uPlot, values: string[], index: number, cycle: number): number {
  const axis = plot.axes[index]! as uPlot.Axis & { _size: number };
  // uPlot asks again until sizes settle; a second answer must not oscillate.
  if (cycle > 1) return axis._size;
  plot.ctx.save();
  plot.ctx.font = FONT;
  const widest = Math.max(0, ...(values ?? []).map((v) => plot.ctx.measureText(v).width));
  plot.ctx.restore();
  return Math.ceil(widest) + 14;
}

function clipped(plot: uPlot, paint: ((plot: uPlot) => void) | undefined): void {
  if (!paint) return;
  const { left, top, width, height } = plot.bbox;
  plot.ctx.save();
  plot.ctx.beginPath();
  plot.ctx.rect(left, top, width, height);
  plot.ctx.clip();
  paint(plot);
  plot.ctx.restore();
}
