// Light or dark: what the system prefers, unless the reader has chosen.

type Theme = "light" | "dark";
const KEY = "dynaxx-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners: (() => void)[] = [];
let printing = false;

function chosen(): Theme | null {
  const value = document.documentElement.dataset.theme;
  return value === "light" || value === "dark" ? value : null;
}

export function dark(): boolean {
  return !printing && (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
}

/** Calls back whenever colours change. */
export function onTheme(listener: () => void): void {
  listeners.push(listener);
}

function changed(): void {
  for (const listener of listeners) listener();
}

function stored(value?: Theme): string | null {
  // Storage is refused to some pages opened from disk; the choice then lasts as long as the page.
  try {
    if (value) localStorage.setItem(KEY, value);
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export function startTheme(): void {
  const before = stored();
  if (before === "light" || before === "dark") document.documentElement.dataset.theme = before;
  system.addEventListener("change", changed);
  const print = (now: boolean) => () => {
    printing = now;
    document.documentElement.toggleAttribute("data-print", now);
    changed();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
}

export function toggleTheme(): void {
  const next: Theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  stored(next);
  changed();
}
