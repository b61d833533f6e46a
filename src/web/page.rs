//! The status page: one HTML file with its style, its script and the first status inside.
//!
//! The script puts whatever comes from elsewhere into the page as text; the policy lets nothing run
//! or load but the style and the script themselves.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::crypto::digest::{SHA256, digest};

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// The page's `Content-Security-Policy`.
pub(super) static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
});

/// The page with the status as JSON, and as HTML for those without JavaScript.
pub fn page(status: &str, without_scripts: &str) -> String {
    // In JSON, '<' stands in strings alone; so none of them ends the element.
    let status = status.replace('<', "\\u003c");
    let mut page = String::with_capacity(64 * 1024);
    let mut rest = HTML;
    for (place, text) in [
        ("/*style*/", STYLE),
        ("<!--table-->", without_scripts),
        ("/*status*/", &status),
        ("/*script*/", SCRIPT),
    ] {
        let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
        page.extend([before, text]);
        rest = after;
    }
    page.push_str(rest);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_its_place_and_nothing_ends_the_script() {
        let page = page(r#"{"name":"</script><b>"}"#, "<p>table</p>");
        assert!(page.contains(STYLE) && page.contains(SCRIPT) && page.contains("<p>table</p>"));
        assert!(page.contains(r#"{"name":"\u003c/script>\u003cb>"}"#));
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script").count(), 2);
        assert!(!SCRIPT.contains("</") && !STYLE.contains("</"));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_nothing_is_inline() {
        for word in ["http:", "https:", "//cdn", "@import", "url(", " style=", " onclick="] {
            assert!(!HTML.contains(word), "{word} in the HTML");
            assert!(!STYLE.contains(word), "{word} in the style");
        }
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
    }
}
