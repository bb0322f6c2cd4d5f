// What is measured rarely is shown as such: its points are marked, and where it ends early the panel says so.
import type uPlot from "uplot";
import { where } from "./format";
import type { Range } from "./group";

/** Pixels between two points from which on each is marked. */
const APART = 16;

/** Of the points of a series those that stand apart from both neighbours. */
export function apart(plot: uPlot, series: number): number[] {
  const [steps, values] = [plot.data[0], plot.data[series]!];
  const at: number[] = [];
  for (let i = 0; i < steps.length; i++) if (values[i] != null) at.push(i);
  const place = at.map((i) => plot.valToPos(steps[i]!, "x"));
  const far = (from: number, to: number) => from < 0 || to === at.length || place[to]! - place[from]! >= APART;
  return at.filter((_, k) => far(k - 1, k) && far(k, k + 1));
}

/** In words, that the last of so many measurements lies before the last third of the steps; else nothing. */
export function endsEarly(times: number, last: number, [low, high]: Range): string {
  if (!times || last > low + (2 / 3) * (high - low)) return "";
  return times === 1 ? `Measured once, at step ${where(last)}.` : `Measured ${times} times, last at step ${where(last)}.`;
}
