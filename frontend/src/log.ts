// A logarithmic axis that keeps to the data: uPlot's own snaps to whole decades and labels some ticks only.
import type uPlot from "uplot";
import { num } from "./format";

/** The data with a margin of a twentieth of their decades. */
export function logRange(_: uPlot, min: number | null, max: number | null): [number, number] {
  if (min === null || max === null) return [1, 10];
  const margin = Math.max(1.05, (max / min) ** 0.05);
  return [min / margin, max * margin];
}

/** Whole decades where there are many, else multiples of them, else even steps. */
export function logSplits(min: number, max: number, most: number): number[] {
  const decades = Math.log10(max / min);
  if (decades < 0.35) return evenSplits(min, max);
  const every = Math.max(1, Math.ceil(decades / most));
  const digits = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  const splits: number[] = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
    if (power % every !== 0) continue;
    for (const digit of digits) {
      // Read as text, 3e-5 is exact, while 3 * 10 ** -5 is not.
      const value = Number(`${digit}e${power}`);
      if (value >= min && value <= max) splits.push(value);
    }
  }
  return splits;
}

function evenSplits(min: number, max: number): number[] {
  const rough = (max - min) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!;
  const splits: number[] = [];
  for (let value = Math.ceil(min / step) * step; value <= max; value += step) splits.push(Number(value.toPrecision(12)));
  return splits;
}

export const LOG_AXIS: uPlot.Axis = {
  splits: (plot, _, min, max) => logSplits(min, max, Math.max(2, plot.bbox.height / devicePixelRatio / 26)),
  filter: (_, splits) => splits,
  values: (_, splits) => splits.map((v) => num(v, 3)),
};
