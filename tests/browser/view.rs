//! Who looks at a page, and on what.

use serde_json::{Value, json};

/// A screen and its user's preferences. Where nothing is said: a desktop's width, light colours, scripts.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// In CSS pixels.
    pub width: u32,
    /// In CSS pixels.
    pub height: u32,
    /// Touch, and the page's own idea of its width.
    pub mobile: bool,
    /// `prefers-color-scheme: dark`.
    pub dark: bool,
    /// `forced-colors: active`, as with Windows' high contrast.
    pub forced_colors: bool,
    /// Whether the page's scripts run.
    pub scripts: bool,
}

impl View {
    /// A window on a desk.
    pub const DESKTOP: View = View {
        width: 1280,
        height: 900,
        mobile: false,
        dark: false,
        forced_colors: false,
        scripts: true,
    };

    /// A phone held upright.
    pub const PHONE: View = View { width: 390, height: 844, mobile: true, ..View::DESKTOP };

    /// In dark colours.
    pub fn dark(self) -> View {
        View { dark: true, ..self }
    }

    /// With the system's few colours alone.
    pub fn forced_colors(self) -> View {
        View { forced_colors: true, ..self }
    }

    /// With JavaScript switched off.
    pub fn without_scripts(self) -> View {
        View { scripts: false, ..self }
    }

    /// The calls that make it so.
    pub(super) fn calls(&self) -> [(&'static str, Value); 3] {
        let scheme = if self.dark { "dark" } else { "light" };
        let forced = if self.forced_colors { "active" } else { "none" };
        let metrics = json!({
            "width": self.width, "height": self.height, "mobile": self.mobile,
            "deviceScaleFactor": if self.mobile { 2 } else { 1 },
        });
        let features = json!({ "features": [
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "forced-colors", "value": forced },
        ] });
        [
            ("Emulation.setDeviceMetricsOverride", metrics),
            ("Emulation.setEmulatedMedia", features),
            ("Emulation.setScriptExecutionDisabled", json!({ "value": !self.scripts })),
        ]
    }
}
