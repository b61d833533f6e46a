//! A new connection's first byte takes the round trips that it has to, and no more.

mod lab;

use lab::{AgentProgram, FirstByte, ServerProgram, two_of_three};

/// What it may take of the round trips router - server and server - target: between about 1.05, as on an idle
/// machine keeps, and the 1.9 of a single trip over the far uplink.
const SHARE: f64 = 1.5;

#[test]
fn the_first_byte_takes_one_round_trip_over_the_nearest_uplink() {
    let lab = FirstByte::lab("first-byte");
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let in_time = two_of_three(|| {
        let it = FirstByte::measure(&lab);
        println!("{it:?}: {:.3} of the round trips", it.share());
        if it.share() <= SHARE { Ok(()) } else { Err(it) }
    });
    in_time.unwrap_or_else(|it| panic!("{it:?}: {:.3} of the round trips", it.share()));
}
