// What the page is given: JSON with the names of arrays, and one compressed block that holds them.

export type Scale = "linear" | "log";
export type Style = "line" | "points" | "faint" | "dashed";

export interface Curve {
  label: string;
  style: Style;
  x_array: string;
  y_array: string;
  /** Points before pooling. */
  points: number;
}

export interface LinesPanel {
  kind: "lines" | "path";
  title: string;
  note: string;
  x_label: string;
  y_label: string;
  scale: Scale;
  x_scale: Scale;
  /** Places on the horizontal axis, by name. */
  marks: Record<string, number>;
  /** Stretches of the horizontal axis to shade, by name. */
  spans: Record<string, [number, number]>;
  lines: Curve[];
  /** Intervals of x with a value that is not finite. */
  bad: [number, number][];
}

export interface HeatPanel {
  kind: "heat";
  title: string;
  note: string;
  x_label: string;
  value_label: string;
  scale: Scale;
  rows: string[];
  x_array: string;
  codes_array: string;
  /** Values of codes 2 and `codes`, evenly spaced on `scale` between. */
  span: [number, number];
  /** Values at the ends of the colour map. */
  colours: [number, number];
  codes: number;
  /** Steps in a cell, at most. */
  pooled: number;
  by: "max" | "mean";
  /** No cell has a number. */
  empty: boolean;
  bad: boolean;
  missing: boolean;
}

export interface FieldPanel {
  kind: "field";
  title: string;
  note: string;
  x_label: string;
  y_label: string;
  value_label: string;
  scale: Scale;
  x_array: string;
  y_array: string;
  /** Row by row; NaN where not finite. */
  values_array: string;
  /** Values at the ends of the colour map. */
  colours: [number, number];
  /** Curves, and single points. */
  paths: Curve[];
}

export interface TablePanel {
  kind: "table";
  title: string;
  note: string;
  header: string[];
  rows: string[][];
}

export type Panel = LinesPanel | HeatPanel | FieldPanel | TablePanel;

export interface Figure {
  name: string;
  title: string;
  panels: Panel[];
}

export interface Fact {
  label: string;
  value: string;
  detail: string;
  alarm: boolean;
}

interface Place {
  type: "f8" | "f4" | "u4" | "u2";
  offset: number;
  length: number;
}

export interface Run {
  name: string;
  summary: Fact[];
  figures: Figure[];
  missing: { title: string; reason: string }[];
  arrays: Record<string, Place>;
  /** Place among the runs, which decides its colour; set on reading. */
  index: number;
}

export interface Payload {
  format: number;
  runs: Run[];
}

export type Numbers = Float64Array | Float32Array | Uint32Array | Uint16Array;

/** The arrays of all runs. */
export class Arrays {
  constructor(private readonly block: ArrayBuffer) {}

  get(run: Run, name: string): Numbers {
    const place = run.arrays[name];
    if (!place) throw new Error(`the report lacks the array ${name}`);
    const kinds = { f8: Float64Array, f4: Float32Array, u4: Uint32Array, u2: Uint16Array };
    return new kinds[place.type](this.block, place.offset, place.length);
  }
}

function text(id: string): string {
  return document.getElementById(id)?.textContent ?? "";
}

/** Reads what stands in the page. */
export async function readPage(): Promise<[Payload, Arrays]> {
  const packed = Uint8Array.from(atob(text("arrays")), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const payload = JSON.parse(text("payload")) as Payload;
  payload.runs.forEach((run, i) => (run.index = i));
  return [payload, new Arrays(await new Response(stream).arrayBuffer())];
}
