//! What a program may do after its start: Linux capabilities (`capabilities(7)`).

use rustix::io::{self, Errno};
pub use rustix::thread::CapabilitySet;
use rustix::thread::{self, CapabilitySets};

/// Whether this thread has these capabilities now.
///
/// # Errors
/// Those of `capget(2)`.
pub fn holds(capabilities: CapabilitySet) -> io::Result<bool> {
    Ok(thread::capabilities(None)?.effective.contains(capabilities))
}

/// Gives up all capabilities but these for good. Programs run from now on, and threads started from
/// now on, have no others either: capabilities belong to threads, so there must be but one so far.
///
/// A user id of 0 stays: its files can be read and written, those of others only as they allow.
///
/// # Errors
/// What could not be given up and why, in words; the rest is given up all the same.
pub fn keep_only(kept: CapabilitySet) -> Result<(), String> {
    let steps = [
        ("gaining others by running programs", thread::set_no_new_privs(true)),
        ("the bounding set", limit_bounding_set(kept)),
        ("the capabilities held", limit_permitted(kept)),
    ];
    let refused: Vec<String> = steps
        .iter()
        .filter_map(|(what, result)| Some(format!("{what}: {}", result.err()?)))
        .collect();
    if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
}

fn limit_permitted(kept: CapabilitySet) -> io::Result<()> {
    let permitted = thread::capabilities(None)?.permitted & kept;
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: permitted, permitted, inheritable };
    thread::set_capabilities(None, sets)
}

/// Who may not limit the set cannot gain by it either: `no_new_privs` keeps programs to what is held.
fn limit_bounding_set(kept: CapabilitySet) -> io::Result<()> {
    if !thread::capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {
                thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// `CapEff`, `CapPrm`, `CapBnd` and `NoNewPrivs`, as in `/proc/PID/status`.
    fn fields(status: &str) -> [String; 4] {
        ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs"].map(|name| {
            let mut fields = status.lines().filter_map(|line| line.split_once(":\t"));
            fields.find(|(field, _)| *field == name).unwrap().1.to_owned()
        })
    }

    /// What a thread of root's that began with these capabilities keeps, and a program it runs.
    fn left(before: CapabilitySet, kept: CapabilitySet) -> [[String; 4]; 2] {
        let thread = std::thread::spawn(move || {
            limit_permitted(before).unwrap();
            keep_only(kept).unwrap();
            let child = Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
            let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            [fields(&own), fields(std::str::from_utf8(&child).unwrap())]
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_thread_and_its_programs_have_what_is_kept() {
        let kept = CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE;
        let caps = "0000000000001400";
        let [own, child] = left(CapabilitySet::from_bits_retain(u64::MAX), kept);
        assert_eq!(own, [caps, caps, caps, "1"]);
        assert_eq!(child, own);
    }

    #[test]
    fn who_may_not_limit_what_programs_gain_limits_what_is_held() {
        let before = CapabilitySet::from_bits_retain(u64::MAX) - CapabilitySet::SETPCAP;
        let ([own, child], none) = (left(before, CapabilitySet::empty()), "0000000000000000");
        assert_eq!([&own[0], &own[1], &child[0], &child[1]], [none; 4]);
        assert_eq!([&own[3], &child[3]], ["1"; 2]);
    }
}
