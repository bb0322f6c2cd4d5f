// Making elements. Text always enters as text, never as markup: names of runs and layers come from strangers.

type Child = Node | string;

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function button(label: string, title: string, click: (button: HTMLButtonElement) => void): HTMLButtonElement {
  const made = el("button", { type: "button", title }, label);
  made.addEventListener("click", () => click(made));
  return made;
}
