// A function on a grid: its values between the points, and the lines along which it has one value.
import type { Numbers } from "./payload";

export class Grid {
  constructor(
    readonly x: Numbers,
    readonly y: Numbers,
    /** Row by row; NaN where the function is not finite. */
    readonly values: Numbers,
  ) {}

  at(row: number, column: number): number {
    return this.values[row * this.x.length + column]!;
  }

  /** Linear in both directions; beside a wall the nearest point. NaN outside. */
  read(x: number, y: number): number {
    const [i, u] = place(this.y, y);
    const [j, v] = place(this.x, x);
    if (i < 0 || j < 0) return NaN;
    const [a, b, c, d] = [this.at(i, j), this.at(i, j + 1), this.at(i + 1, j), this.at(i + 1, j + 1)];
    const mixed = (1 - u) * ((1 - v) * a + v * b) + u * ((1 - v) * c + v * d);
    return Number.isNaN(mixed) ? this.at(u < 0.5 ? i : i + 1, v < 0.5 ? j : j + 1) : mixed;
  }
}

/** The interval that a position falls into, and how far into it; −1 outside. */
function place(ends: Numbers, at: number): [number, number] {
  const last = ends.length - 1;
  if (last < 1 || !(at >= ends[0]! && at <= ends[last]!)) return [-1, 0];
  let [low, high] = [0, last];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (ends[middle]! <= at) low = middle;
    else high = middle;
  }
  return [low, (at - ends[low]!) / (ends[high]! - ends[low]!)];
}

/** Round values between two ends, about a dozen. */
export function evenLevels(low: number, high: number): number[] {
  const rough = (high - low) / 12;
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!;
  const found: number[] = [];
  for (let i = Math.ceil(low / step); i * step < high; i++) if (i * step > low) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export type Segment = [number, number, number, number];

/** Marching squares: where the function equals a level, as pieces x0, y0, x1, y1 within the cells. */
export function segments(grid: Grid, level: number): Segment[] {
  const found: Segment[] = [];
  const { x, y } = grid;
  for (let i = 0; i + 1 < y.length; i++) {
    for (let j = 0; j + 1 < x.length; j++) {
      const corners = [grid.at(i, j), grid.at(i, j + 1), grid.at(i + 1, j + 1), grid.at(i + 1, j)];
      if (corners.some(Number.isNaN)) continue;
      const ends: [number, number][] = [];
      for (let side = 0; side < 4; side++) {
        const [a, b] = [corners[side]!, corners[(side + 1) % 4]!];
        if (a < level === b < level) continue;
        const t = (level - a) / (b - a);
        if (side === 0) ends.push([x[j]! + t * (x[j + 1]! - x[j]!), y[i]!]);
        else if (side === 1) ends.push([x[j + 1]!, y[i]! + t * (y[i + 1]! - y[i]!)]);
        else if (side === 2) ends.push([x[j + 1]! + t * (x[j]! - x[j + 1]!), y[i + 1]!]);
        else ends.push([x[j]!, y[i + 1]! + t * (y[i]! - y[i + 1]!)]);
      }
      // Four ends are a saddle: its middle decides which of them are joined.
      if (ends.length === 4) {
        const middle = (corners[0]! + corners[1]! + corners[2]! + corners[3]!) / 4;
        if (middle < level !== corners[0]! < level) ends.push(ends.shift()!);
      }
      for (let k = 0; k + 1 < ends.length; k += 2) found.push([...ends[k]!, ...ends[k + 1]!]);
    }
  }
  return found;
}
