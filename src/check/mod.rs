//! `mptcp-bond check`: facts in, findings out, each with what was found and what to do about it.
//!
//! An uplink's facts are judged in the order in which they depend on each other, up to the first
//! that fails: what follows from a failure is not a finding of its own. So an uplink that carries
//! nothing has exactly one reason.

mod facts;
mod kernel;
mod render;
mod server;
mod uplink;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

#[cfg(test)]
use serde::Deserialize;
use serde::Serialize;
use serde_json::{Value, json};

use crate::status::wanted_style;

pub use facts::{
    AgentFacts, Contact, Datagrams, Facts, Gateway, Join, KernelFacts, LARGEST_PACKET, PathMtu,
    Reply, ServerFacts, ServerLimits, Trial, UplinkFacts,
};
pub use kernel::MPTCP_ENABLED;
pub use render::render;

/// How something does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    #[default]
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work.
    Failed,
}

impl Grade {
    /// The grade in a word.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Warning => "warning",
            Grade::Failed => "FAILED",
        }
    }
}

/// One thing that was looked at. Field names and codes are stable: they may be added to, and are
/// never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Finding {
    /// Whose: `kernel`, `configuration`, `server NAME` or `uplink NAME`.
    pub subject: String,
    /// What was looked at, in a word or two.
    pub check: Cow<'static, str>,
    /// How it does.
    pub result: Grade,
    /// What is the matter, for programs; `ok` when nothing is.
    pub code: Cow<'static, str>,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing to do.
    pub advice: String,
}

/// Whether an uplink carries traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct UplinkVerdict {
    /// The section's name.
    pub name: String,
    /// Whether new data is sent over it.
    pub carries: bool,
    /// Why it carries nothing: the code of one of its findings; none when it carries traffic.
    pub reason: Option<Cow<'static, str>>,
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Report {
    /// The version of the program that looked.
    pub version: String,
    /// Whether an agent runs; without one less can be looked at.
    pub agent_running: bool,
    /// Whether everything is well: no finding is worse than [`Grade::Ok`].
    pub well: bool,
    /// What was looked at, subject by subject.
    pub findings: Vec<Finding>,
    /// The uplinks in order of configuration.
    pub uplinks: Vec<UplinkVerdict>,
}

impl Report {
    /// The report as one line of JSON.
    pub fn to_json(&self) -> String {
        // Neither a map with keys other than strings nor a failing Serialize is among the types.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The answer to a question for a check with these parameters: the report as JSON, or whether all
    /// is well and the text for a terminal of the style asked for.
    ///
    /// # Errors
    /// What is wrong with the parameters.
    pub fn answer(&self, params: Value) -> Result<String, String> {
        Ok(match wanted_style(params)? {
            None => self.to_json(),
            Some(style) => json!({ "well": self.well, "text": render(self, style) }).to_string(),
        })
    }

    /// Reads what [`Report::to_json`] wrote, of this version or another.
    ///
    /// # Errors
    /// A sentence for people when the text is not such JSON.
    #[cfg(test)]
    pub fn from_json(json: &str) -> Result<Report, String> {
        serde_json::from_str(json).map_err(|error| format!("the report cannot be read: {error}"))
    }

    /// How many findings are of this grade.
    pub fn count(&self, grade: Grade) -> usize {
        self.findings.iter().filter(|finding| finding.result == grade).count()
    }
}

/// Judges the facts.
pub fn judge(facts: &Facts) -> Report {
    let mut findings = kernel::configuration(facts);
    findings.extend(kernel::kernel(facts));
    let (server, trouble) = server::judge(facts);
    findings.extend(server);
    let mut uplinks = Vec::new();
    for uplink in &facts.uplinks {
        let (found, verdict) = uplink::judge(uplink, facts, trouble.as_ref());
        findings.extend(found);
        uplinks.push(verdict);
    }
    Report {
        version: facts.version.clone(),
        agent_running: facts.agent.is_some(),
        well: findings.iter().all(|finding| finding.result == Grade::Ok),
        findings,
        uplinks,
    }
}

/// The findings on one subject, in the order in which they are made.
struct Findings {
    subject: String,
    list: Vec<Finding>,
}

impl Findings {
    fn on(subject: impl Into<String>) -> Findings {
        Findings { subject: subject.into(), list: Vec::new() }
    }

    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Grade::Ok, "ok", found, "");
    }

    fn warn(
        &mut self,
        check: &'static str,
        code: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Grade::Warning, code, found, advice);
    }

    fn fail(
        &mut self,
        check: &'static str,
        code: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Grade::Failed, code, found, advice);
    }

    fn add(
        &mut self,
        check: &'static str,
        result: Grade,
        code: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.list.push(Finding {
            subject: self.subject.clone(),
            check: check.into(),
            result,
            code: code.into(),
            found: found.into(),
            advice: advice.into(),
        });
    }

    fn failed(&self) -> Option<&Finding> {
        self.list.iter().find(|finding| finding.result == Grade::Failed)
    }
}

/// Splits a sentence such as `eth1 has no carrier: check cable` into what was found and what to do.
fn sentence(text: &str) -> (String, String) {
    let (found, advice) = text.rsplit_once(": ").unwrap_or((text, ""));
    (found.to_owned(), advice.to_owned())
}
