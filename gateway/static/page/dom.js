/** Elements and their texts. What callers wrote becomes text only: nothing on this page parses HTML. */

/**
 * Return a new element. A property whose name begins with `on` is a listener, `class`, `role`, `aria-*`
 * and `data-*` are attributes, everything else is a property. Children that are null are left out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(class|role|for|list|aria-.*|data-.*|popover)$/.test(name)) {
      element.setAttribute(name, value === true ? "" : String(value));
    } else Reflect.set(element, name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Return the element with this id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`no element has the id ${id}`);
  return element;
}

/**
 * Return a function that runs `work` once before the next picture, however often it is called.
 * @param {() => void} work
 */
export function beforeNextPicture(work) {
  let requested = 0;
  return () => {
    requested ||= requestAnimationFrame(() => {
      requested = 0;
      work();
    });
  };
}

/**
 * Return a text as a sentence.
 * @param {string} text
 */
export function sentence(text) {
  return text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "";
}
