use super::*;
use crate::uplink::tests::link;

const STALE: &str = "net/mptcp/stale_loss_cnt";
const RP_FILTER: &str = "net/ipv4/conf/wan/rp_filter";

fn kernel(stale: &str, rp_filter: Option<&str>, wan: u32, limits: Option<Limits>) -> Kernel {
    let mut kernel = Kernel { limits, ..Kernel::default() };
    kernel.sysctls.insert(STALE.into(), stale.into());
    if let Some(value) = rp_filter {
        kernel.sysctls.insert(RP_FILTER.into(), value.into());
        kernel.links.extend([link(wan, "wan")]);
    }
    kernel
}

fn set(key: &str, value: &str) -> Operation {
    Operation::SetSysctl { key: key.into(), value: value.into() }
}

const BEFORE: Option<Limits> = Some(Limits { subflows: 2, add_addr_accepted: 0 });
const OURS: Option<Limits> = Some(Limits { subflows: 8, add_addr_accepted: 8 });

fn plan() -> Plan {
    vec![set(STALE, "1"), set(RP_FILTER, "2"), Operation::SetLimits(OURS.unwrap())]
}

#[test]
fn originals_come_back() {
    let mut originals = Originals::default();
    assert!(originals.remember(&plan(), &kernel("4", Some("1"), 3, BEFORE)));
    assert_eq!(originals.keys().len(), 2);
    assert_eq!(
        originals.restore_plan(&kernel("1", Some("2"), 3, OURS)),
        [Operation::SetLimits(BEFORE.unwrap()), set(RP_FILTER, "1"), set(STALE, "4")]
    );
    assert_eq!(originals.restore_plan(&kernel("4", Some("1"), 3, BEFORE)), []);
}

#[test]
fn later_values_do_not_pass_for_originals() {
    let mut originals = Originals::default();
    originals.remember(&plan(), &kernel("4", Some("1"), 3, BEFORE));
    assert!(!originals.remember(&plan(), &kernel("7", Some("0"), 3, OURS)));
    let restored = originals.restore_plan(&kernel("1", Some("2"), 3, OURS));
    assert!(restored.contains(&set(STALE, "4")) && restored.contains(&set(RP_FILTER, "1")));
}

#[test]
fn what_is_not_there_is_neither_remembered_nor_restored() {
    let mut originals = Originals::default();
    originals.remember(&plan(), &kernel("4", None, 3, None));
    assert_eq!(originals.keys().into_iter().collect::<Vec<_>>(), [STALE]);
    originals.remember(&plan(), &kernel("1", Some("1"), 3, BEFORE));
    assert_eq!(originals.restore_plan(&kernel("1", None, 3, None)), [set(STALE, "4")]);
}

#[test]
fn a_device_that_comes_back_is_another_one() {
    let mut originals = Originals::default();
    originals.remember(&plan(), &kernel("4", Some("1"), 3, BEFORE));
    let untouched = kernel("4", Some("0"), 9, BEFORE);
    assert_eq!(originals.restore_plan(&untouched), []);
    originals.remember(&plan(), &untouched);
    let changed = kernel("4", Some("2"), 9, BEFORE);
    assert_eq!(originals.restore_plan(&changed), [set(RP_FILTER, "0")]);
}

#[test]
fn the_file_outlives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = SavedState::load(dir.path()).unwrap();
    state.remember(&[], &kernel("4", Some("1"), 3, BEFORE)).unwrap();
    assert!(!dir.path().join(FILE).exists(), "nothing to remember");
    state.remember(&plan(), &kernel("4", Some("1"), 3, BEFORE)).unwrap();
    drop(state);

    let mut state = SavedState::load(dir.path()).unwrap();
    let ours = kernel("1", Some("2"), 3, OURS);
    state.remember(&plan(), &ours).unwrap();
    assert_eq!(state.restore_plan(&ours).len(), 3);
    state.forget_all().unwrap();
    state.forget_all().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(SavedState::load(dir.path()).unwrap().restore_plan(&ours), []);
}

#[test]
fn values_that_cannot_be_written_down_are_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = SavedState::load(&dir.path().join("gone")).unwrap();
    state.remember(&plan(), &kernel("4", Some("1"), 3, BEFORE)).unwrap_err();
    assert_eq!(state.keys().len(), 0, "the next pass must try again");
}

#[test]
fn a_file_of_somebody_else_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), "{\"sysctls\": 1}").unwrap();
    let error = SavedState::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("saved.json"), "{error}");
}
