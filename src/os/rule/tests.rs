use super::super::netlink::messages;
use super::super::netlink::tests::{Noise, bytes};
use super::*;

fn read_back(bytes: &[u8]) -> Option<Rule> {
    messages(bytes).next().and_then(|message| rule(&message))
}

fn any_rule(noise: &mut Noise) -> Rule {
    let family = Family::ALL[noise.below(2)];
    let prefix = |noise: &mut Noise| {
        let length = 1 + noise.u8() % family.bits();
        noise.bool().then(|| Prefix::new(noise.address(family), length).unwrap().network())
    };
    Rule {
        priority: Priority(noise.u32() % 32768),
        family,
        from: prefix(noise),
        to: prefix(noise),
        iif: noise.bool().then(|| format!("br-{}", noise.below(100))),
        oif: noise.bool().then(|| format!("eth{}", noise.below(100))),
        mark: noise.bool().then(|| (Mark(noise.u32()), noise.u32())),
        table: Table(1 + noise.u32() % 6000),
        suppress_prefix_length: noise.bool().then(|| noise.u32() % 129),
    }
}

/// The kernel describes a rule in the words in which it is asked to add one.
#[test]
fn a_rule_written_reads_the_same() {
    let mut noise = Noise::new();
    for _ in 0..20_000 {
        let rule = any_rule(&mut noise);
        assert_eq!(read_back(&bytes(&encode(&rule))), Some(rule));
    }
}

/// A rule of a priority that jumps (`FR_ACT_GOTO`), is inverted or has a selector we do not know.
fn foreign(priority: u32, action: u8, tos: u8, flags: u32, selector: u16) -> Request {
    let mut header = vec![2, 0, 0, tos, 0, 0, 0, action];
    header.extend(flags.to_ne_bytes());
    Request::new(RTM_NEWRULE, 0, &header)
        .u32(FRA_PRIORITY, priority)
        .u32(FRA_TABLE, 5001)
        .attribute(selector, &[0; 4])
}

#[test]
fn rules_beyond_words_show_only_among_ours() {
    for (action, tos, flags, selector) in [
        (FR_ACT_TO_TBL, 0, 0, 20),
        (FR_ACT_TO_TBL, 0, 0, 22),
        (FR_ACT_TO_TBL, 4, 0, FRA_PAD),
        (FR_ACT_TO_TBL, 0, FIB_RULE_INVERT, FRA_PAD),
        (6, 0, 0, FRA_PAD),
    ] {
        assert_eq!(read_back(&bytes(&foreign(100, action, tos, flags, selector))), None);
        let ours = read_back(&bytes(&foreign(600, action, tos, flags, selector))).unwrap();
        assert_eq!((ours.table, ours.priority), (FOREIGN_TABLE, Priority(600)));
    }
    let plain = read_back(&bytes(&foreign(600, FR_ACT_TO_TBL, 0, 0, FRA_PAD))).unwrap();
    assert_eq!(plain.table, Table(5001));
}

#[test]
fn no_suppression_is_none() {
    let request = foreign(600, FR_ACT_TO_TBL, 0, 0, FRA_PAD).u32(FRA_SUPPRESS_PREFIXLEN, u32::MAX);
    assert_eq!(read_back(&bytes(&request)).unwrap().suppress_prefix_length, None);
}

#[test]
fn no_message_makes_the_reader_panic() {
    let mut noise = Noise::new();
    for _ in 0..100_000 {
        let bytes = bytes(&encode(&any_rule(&mut noise)));
        read_back(&noise.mutate(&bytes));
    }
}
