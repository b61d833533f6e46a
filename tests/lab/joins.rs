//! Uplinks that join connections which upload.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Lab, LabBuilder};

/// What the server says of a stream whose records do not verify.
const ALTERED: &str = "altered on the way";

/// Runs a test in which uplinks join uploads, in a lab of its own; once more, in another one, when it failed
/// and the server found an upload altered.
///
/// In one of some 400 joins with round trips as short as the lab's, on a busy machine, Linux misplaces what
/// comes first over the uplink that joins (`mptcp_subflow_joined()` in `net/mptcp/protocol.c`; "Limits" in the
/// README). A fault of ours that alters uploads would show both times, or in downloads.
pub fn joining_uploads(lab: LabBuilder, test: impl Fn(&Lab)) {
    let another = lab.clone();
    let lab = lab.build();
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&lab))) else { return };
    let log = fs::read_to_string(lab.logs().join("server.log")).unwrap_or_default();
    if !log.contains(ALTERED) {
        resume_unwind(panic);
    }
    eprintln!("an upload was {ALTERED}: once more");
    drop(lab);
    test(&another.build());
}
