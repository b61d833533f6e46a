//! What the package holds: rights for each call, files for each view, and the scanner's line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::site::package;

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The names in `{ "ubus": { OBJECT: [...] } }` of a right.
fn granted(acl: &Value, right: &str) -> BTreeSet<String> {
    let methods = acl["mptcp-bond"][right]["ubus"]["mptcp-bond"].as_array().cloned();
    methods.unwrap_or_default().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn one_access_group_has_the_rights_for_all_calls() {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let agent = json_of(&project.join("files/usr/share/rpcd/acl.d/mptcp-bond.json"));
    let pages = json_of(&package().join("root/usr/share/rpcd/acl.d/luci-app-mptcp-bond.json"));
    let script = package().join("htdocs/luci-static/resources/mptcp-bond/agent.js");
    let script = fs::read_to_string(script).unwrap();
    let calls = script.match_indices(" declare('").map(|(at, call)| {
        script[at + call.len()..].split('\'').next().unwrap_or_default().to_owned()
    });
    let calls: BTreeSet<String> = calls.collect();
    let reads = ["check", "history", "status"].map(str::to_owned).into();
    let writes = ["pair", "uplink"].map(str::to_owned).into();
    assert_eq!(calls, &reads | &writes);
    assert!(
        granted(&agent, "read").is_superset(&reads)
            && granted(&agent, "write").is_superset(&writes)
    );
    assert!(granted(&agent, "read").is_disjoint(&writes), "reading changes nothing");
    let rights = &pages["mptcp-bond"];
    assert_eq!(rights["read"]["uci"], serde_json::json!(["mptcpd", "network"]));
    assert_eq!(rights["write"]["uci"], serde_json::json!(["mptcpd"]));
    let menu = json_of(&package().join("root/usr/share/luci/menu.d/luci-app-mptcp-bond.json"));
    assert_eq!(
        menu["admin/services/mptcp-bond"]["depends"]["acl"],
        serde_json::json!(["mptcp-bond"])
    );
    for entry in
        menu.as_object().unwrap().values().filter(|entry| entry["action"]["type"] == "view")
    {
        let view = entry["action"]["path"].as_str().unwrap();
        let path = format!("htdocs/luci-static/resources/view/{view}.js");
        assert!(package().join(&path).is_file(), "{path}");
    }
}

/// What `luci.mk` finds, with something in its place that prints it.
#[test]
fn the_makefile_is_one_for_openwrt() {
    let path = package().join("Makefile");
    let signature = "# call BuildPackage - OpenWrt buildroot signature";
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().any(|line| line == signature), "the feed's scanner looks for it");
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("rules.mk"), "").unwrap();
    fs::create_dir_all(top.path().join("feeds/luci")).unwrap();
    let printing = "all:\n\t@echo '$(PKG_NAME) $(PKG_VERSION) $(LUCI_PKGARCH) $(LUCI_DEPENDS) \
                    $(LUCI_MINIFY_JS)$(LUCI_MINIFY_CSS)'\n";
    fs::write(top.path().join("feeds/luci/luci.mk"), printing).unwrap();
    let mut make = Command::new("make");
    make.arg("--no-print-directory").arg("-C").arg(package());
    make.arg(format!("TOPDIR={}", top.path().display()));
    let output = make.output().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("luci-app-mptcp-bond {version} all +luci-base +mptcp-bond 00\n"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
