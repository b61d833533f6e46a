//! A user's mouse and keyboard.

use serde_json::{Value, json};

use super::Page;

/// Named keys: their name, their virtual key code, and the text that they enter.
const KEYS: &[(&str, u32, &str)] = &[
    ("Enter", 13, "\r"),
    ("Tab", 9, ""),
    ("Escape", 27, ""),
    ("Backspace", 8, ""),
    ("Delete", 46, ""),
    ("ArrowLeft", 37, ""),
    ("ArrowUp", 38, ""),
    ("ArrowRight", 39, ""),
    ("ArrowDown", 40, ""),
    (" ", 32, " "),
];

impl Page<'_> {
    /// Clicks on the middle of the first element that a selector finds; panics when something else
    /// covers it.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let place = self.evaluate(&format!(
            "(() => {{
                const target = document.querySelector({selector});
                if (!target) return {{ error: 'there is no such element' }};
                target.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                const box = target.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                const hit = document.elementFromPoint(x, y);
                const related = hit && (target.contains(hit) || hit.contains(target));
                return related ? {{ x, y }} : {{ error: 'it is covered by ' + hit?.outerHTML }};
            }})()",
            selector = json!(selector)
        ));
        assert!(place["error"].is_null(), "click on {selector}: {}", place["error"]);
        for (kind, count) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 1)] {
            let button = if count == 0 { "none" } else { "left" };
            let event = json!({
                "type": kind, "x": place["x"], "y": place["y"], "button": button,
                "clickCount": count,
            });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types a text, key by key, into whatever has the focus.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        for c in text.chars() {
            self.key(&c.to_string(), 0, &c.to_string());
        }
    }

    /// Clicks on a field, empties it and types a text into it.
    #[track_caller]
    pub fn fill(&self, selector: &str, text: &str) {
        self.click(selector);
        self.evaluate(&format!("document.querySelector({}).select?.()", json!(selector)));
        self.press("Delete");
        self.type_text(text);
    }

    /// Pastes a text into whatever has the focus.
    #[track_caller]
    pub fn paste(&self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key by its name, such as `Enter`, `Tab` or `ArrowDown`.
    #[track_caller]
    pub fn press(&self, key: &str) {
        let known = KEYS.iter().find(|(name, ..)| *name == key);
        let (name, code, text) = known.unwrap_or_else(|| panic!("no key is called '{key}'"));
        self.key(name, *code, text);
    }

    /// Chooses an option of a `<select>`, by its value.
    #[track_caller]
    pub fn choose(&self, selector: &str, value: &str) {
        let chosen = self.evaluate(&format!(
            "(() => {{
                const list = document.querySelector({});
                list.focus();
                list.value = {};
                for (const name of ['input', 'change'])
                    list.dispatchEvent(new Event(name, {{ bubbles: true }}));
                return list.value;
            }})()",
            json!(selector),
            json!(value)
        ));
        assert_eq!(chosen, value, "{selector} has no such option");
    }

    #[track_caller]
    fn key(&self, name: &str, code: u32, text: &str) {
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let event = |kind: &str| -> Value {
            json!({
                "type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code,
                "text": if kind == "keyUp" { "" } else { text },
            })
        };
        self.call("Input.dispatchKeyEvent", event(down));
        self.call("Input.dispatchKeyEvent", event("keyUp"));
    }
}
