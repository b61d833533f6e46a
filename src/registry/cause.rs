//! Why somebody was refused.

/// Why somebody was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The first bytes are of no protocol served here.
    NotOurs,
    /// A tag or a handshake does not verify.
    NotAuthentic,
    /// What arrived on a stream in use is not what the client sent: somebody or something on the way
    /// alters it.
    Altered,
    /// A stream counter was used before.
    Replayed,
    /// The stream's session is unknown or has expired.
    NoSession,
    /// The client's key is not among those configured.
    UnknownKey,
    /// The client speaks no version spoken here.
    Version,
    /// It did not show who it is in time.
    Silent,
    /// It ended in the middle of showing who it is.
    CutOff,
    /// Too many connections had not shown who they are: this one gave way.
    Crowded,
    /// The policy forbids the target.
    Denied,
    /// The client has as many streams as it may.
    TooManyStreams,
    /// All clients together have as many streams as they may: of a stream, or of a client that has
    /// none yet.
    Full,
    /// Too many connections to forwarded ports waited for their client.
    Unclaimed,
}

impl Cause {
    /// The cause in the status.
    pub fn word(self) -> &'static str {
        match self {
            Cause::NotOurs => "not this protocol",
            Cause::NotAuthentic => "not authentic",
            Cause::Altered => "altered on the way",
            Cause::Replayed => "replayed",
            Cause::NoSession => "no session",
            Cause::UnknownKey => "unknown key",
            Cause::Version => "version",
            Cause::Silent => "silent",
            Cause::CutOff => "cut off",
            Cause::Crowded => "crowded",
            Cause::Denied => "denied by policy",
            Cause::TooManyStreams => "too many streams",
            Cause::Full => "too many streams of all clients",
            Cause::Unclaimed => "too many connections wait at forwarded ports",
        }
    }
}
