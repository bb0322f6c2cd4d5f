// Charts over a common axis: one zoom and one cross-hair for all of them.

export type Range = [number, number];

export interface Member {
  /** Redraw for the group's new view. */
  viewed(): void;
  /** Show the cross-hair at x, or nowhere; `own` where the pointer is. */
  pointed(x: number | null, own: boolean): void;
}

export class Group {
  private readonly members = new Set<Member>();
  private zoomed: Range | null = null;
  private at: number | null = null;
  /** Where the pointer or the focus was last. */
  private source: Member | null = null;
  readonly full: Range;

  constructor(full: Range, private readonly onZoom: (range: Range | null) => void = () => {}) {
    this.full = full[1] > full[0] ? full : [full[0] - 0.5, full[1] + 0.5];
  }

  join(member: Member): void {
    this.members.add(member);
  }

  /** What is in view now. */
  get view(): Range {
    return this.zoomed ?? this.full;
  }

  /** Where the cross-hair is. */
  get cursor(): number | null {
    return this.at;
  }

  zoom(range: Range | null): void {
    if (range) {
      const [low, high] = [Math.max(range[0], this.full[0]), Math.min(range[1], this.full[1])];
      if (!(high > low)) return;
      range = low <= this.full[0] && high >= this.full[1] ? null : [low, high];
    }
    this.zoomed = range;
    for (const member of this.members) member.viewed();
    this.point(this.at, this.source);
    this.onZoom(range);
  }

  /** Zooms about the cross-hair, or the middle: factor below 1 comes closer. */
  scale(factor: number): void {
    const [low, high] = this.view;
    const centre = this.at ?? (low + high) / 2;
    this.zoom([centre - (centre - low) * factor, centre + (high - centre) * factor]);
  }

  point(x: number | null, source: Member | null): void {
    this.at = x;
    this.source = source;
    for (const member of this.members) member.pointed(x, member === source);
  }

  /** Moves the cross-hair by a share of the view. */
  nudge(share: number, source: Member): void {
    const [low, high] = this.view;
    const from = this.at ?? (share > 0 ? low : high);
    this.point(Math.min(high, Math.max(low, from + share * (high - low))), source);
  }
}
