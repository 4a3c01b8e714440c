/** The credential, which is typed in and kept until the tab is closed, and the name for the history. */

import { byId, h } from "./dom.js";

const CHARACTERS = /^[\x21-\x7e]{1,6000}$/;

/**
 * Connect the button, and return a function that asks for a credential.
 * @param {import("./session.js").Session} session
 * @param {() => void} onChange called when there is another credential or none
 */
export function prepareAccount(session, onChange) {
  const button = byId("account");
  /** @type {HTMLDialogElement | null} */
  let open = null;

  /** @param {string} reason */
  const ask = (reason) => {
    if (open) return;
    const credential = h("input", { type: "password", name: "credential", autocomplete: "off", spellcheck: false });
    const actor = h("input", { name: "actor", value: session.actor, maxLength: 256, autocomplete: "off" });
    const problem = h("div", { class: "notice bad", role: "alert", hidden: true });
    const form = h(
      "form",
      { class: "form", method: "dialog" },
      h("label", {}, "API key or token", credential),
      h("label", {}, "Your name in the history, without a credential", actor),
      problem,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "submit", class: "primary" }, "Use"),
        session.credential && h("button", { type: "button", class: "danger", onclick: () => use("") }, "Forget the credential"),
        h("button", { type: "button", onclick: () => dialog.close() }, "Close"),
      ),
    );
    const dialog = h(
      "dialog",
      { "aria-labelledby": "account-title" },
      h("h2", { id: "account-title" }, "Credential"),
      h("p", {}, reason || "It is sent with each request, kept in this tab only, and forgotten when the tab is closed."),
      form,
    );
    /** @param {string} text */
    const use = (text) => {
      session.credential = text;
      session.name = actor.value.trim();
      dialog.close();
      refresh();
      onChange();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = credential.value.trim().replace(/^Bearer /, "");
      problem.hidden = text === "" || CHARACTERS.test(text);
      problem.textContent = "A credential is printable ASCII without spaces, such as apk_…";
      if (problem.hidden) use(text || session.credential);
    });
    dialog.addEventListener("close", () => {
      open = null;
      dialog.remove();
    });
    open = dialog;
    document.body.append(dialog);
    dialog.showModal();
  };

  const refresh = () => (button.textContent = session.credential ? "Credential ✓" : "Credential");
  button.addEventListener("click", () => ask(""));
  refresh();
  return ask;
}
