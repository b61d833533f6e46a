//! The kernel's MPTCP counters that matter, and what they mean.

use litemap::LiteMap;
#[cfg(test)]
use serde::Deserialize;
use serde::Serialize;

/// A counter of the kernel (`MPTcpExt` in `/proc/net/netstat`, named in `net/mptcp/mib.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Counter {
    /// The kernel's name; a difference is written `A-B`.
    pub name: String,
    /// Its value in this network namespace since the namespace exists.
    pub value: u64,
    /// Whether a value above zero hints at a fault.
    pub symptom: bool,
    /// What it counts.
    pub meaning: String,
}

/// Name, whether it is a symptom, meaning.
const COUNTERS: &[(&str, bool, &str)] = &[
    ("MPCurrEstab", false, "MPTCP connections established now"),
    ("MPTCPRetrans", false, "segments sent again, often over another path"),
    (
        "MPCapableFallbackSYNACK",
        true,
        "answered without MPTCP: options stripped, or no MPTCP there",
    ),
    ("MPCapableFallbackACK", true, "accepted, then continued without MPTCP: options stripped"),
    ("MPCapableDataFallback", true, "fell back to TCP at the first data: options stripped later"),
    ("DssFallback", true, "fell back to TCP: data mappings missing or wrong"),
    ("MPCapableSYNTXDrop", true, "connections begun without MPTCP after MPTCP SYNs were dropped"),
    ("MPCapableSYNTXDisabled", true, "connections begun without MPTCP while it was switched off"),
    ("Blackhole", true, "times MPTCP was switched off because its SYNs were dropped"),
    ("DataCsumErr", true, "checksums wrong: something rewrites the payload"),
    ("DSSCorruptionFallback", true, "mappings corrupt: fell back to TCP"),
    ("DSSCorruptionReset", true, "mappings corrupt: subflow reset"),
    ("MPFailTx", true, "MP_FAIL sent: corrupt data received"),
    ("MPFailRx", true, "MP_FAIL received: the peer saw corrupt data"),
    ("InfiniteMapTx", true, "infinite mappings sent: fell back to TCP for good"),
    ("InfiniteMapRx", true, "infinite mappings received: the peer fell back to TCP for good"),
    ("MPJoinNoTokenFound", true, "joins for a connection that is not known"),
    ("MPJoinSynAckHMacFailure", true, "joins answered with a wrong HMAC"),
    ("MPJoinAckHMacFailure", true, "joins completed with a wrong HMAC"),
    ("MPJoinRejected", true, "joins refused: the limit of subflows was reached, or not allowed"),
    ("MPJoinSynTxBindErr", true, "joins not begun: the address or device could not be bound"),
    ("MPJoinSynTxConnectErr", true, "joins not begun: no route, or the connect failed"),
    ("MPJoinSynTxCreatSkErr", true, "joins not begun: no socket"),
    ("SubflowStale", false, "subflows set aside because they made no progress"),
    ("SubflowRecover", false, "subflows that came back after they had been set aside"),
    ("MPRstRx", false, "subflow resets received"),
    ("MPRstTx", false, "subflow resets sent"),
    ("RmAddr", false, "addresses the peer withdrew"),
    ("RmAddrTx", false, "addresses withdrawn"),
    ("RmAddrTxDrop", true, "withdrawn addresses the peer was not told of"),
    ("AddAddrTxDrop", true, "announced addresses the peer was not told of"),
    ("MPPrioTx", false, "priority changes sent"),
    ("MPPrioRx", false, "priority changes received"),
];

/// Those counters out of all that the kernel shows which matter, in a fixed order; a counter that
/// this kernel does not have is left out.
pub fn kernel_counters(all: &LiteMap<String, u64>) -> Vec<Counter> {
    let mut counters: Vec<Counter> = COUNTERS
        .iter()
        .filter_map(|(name, symptom, meaning)| {
            let value = *all.get(*name)?;
            let (name, meaning) = ((*name).to_owned(), (*meaning).to_owned());
            Some(Counter { name, value, symptom: *symptom, meaning })
        })
        .collect();
    if let (Some(sent), Some(answered)) = (all.get("MPJoinSynTx"), all.get("MPJoinSynAckRx")) {
        counters.push(Counter {
            name: "MPJoinSynTx-MPJoinSynAckRx".to_owned(),
            value: sent.saturating_sub(*answered),
            symptom: false,
            meaning: "joins not answered: blocked on the way, or still going on".to_owned(),
        });
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_left_out_and_unanswered_joins_are_derived() {
        let all = [("MPJoinSynTx", 9), ("MPJoinSynAckRx", 7), ("MPRstRx", 3), ("New", 1)];
        let all = all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let counters: Vec<_> =
            kernel_counters(&all).into_iter().map(|c| (c.name, c.value, c.symptom)).collect();
        assert_eq!(
            counters,
            [("MPRstRx".to_owned(), 3, false), ("MPJoinSynTx-MPJoinSynAckRx".to_owned(), 2, false)]
        );
    }

    #[test]
    fn each_counter_is_listed_once() {
        let mut names: Vec<&str> = COUNTERS.iter().map(|(name, _, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNTERS.len());
    }
}
