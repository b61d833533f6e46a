//! Policy routing rules over rtnetlink (`linux/fib_rules.h`, `net/core/fib_rules.c`).

use rustix::io::Errno;

use super::netlink::{
    CREATE, EXCLUSIVE, Message, Refusal, Replies, Request, Requester, family_number, read,
};
use super::route::lacks_family;
use crate::net::{Family, Mark, Prefix, Priority, ROUTE_PROTOCOL, RULE_PRIORITIES, Rule, Table};

pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// Bytes of `struct fib_rule_hdr`.
const HEADER: usize = 12;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
/// FRA_SUPPRESS_PREFIXLEN where nothing is suppressed.
const NO_SUPPRESSION: u32 = u32::MAX;

/// The table of a rule in our priorities that [`Rule`] cannot express (other selectors, another
/// action): equal to no wish, so that it gets deleted.
pub const FOREIGN_TABLE: Table = Table(0);

/// The rules that look in a table. Those that [`Rule`] cannot express are left out, but inside
/// [`RULE_PRIORITIES`] they appear with [`FOREIGN_TABLE`].
pub async fn rules(requester: &mut Requester) -> Result<Vec<Rule>, Refusal> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let replies = dump(requester, family).await?;
        rules.extend(replies.iter().filter_map(|message| rule(&message)));
    }
    Ok(rules)
}

async fn dump(requester: &mut Requester, family: Family) -> Result<Replies, Refusal> {
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    match requester.request(&Request::dump(RTM_GETRULE, &header)).await {
        Err(refusal) if lacks_family(&refusal) => Ok(Replies::default()),
        replies => replies,
    }
}

fn rule(message: &Message<'_>) -> Option<Rule> {
    if message.kind != RTM_NEWRULE {
        return None;
    }
    let [family, to_length, from_length, tos, table, _, _, action] = read(message.payload, 0)?;
    let flags = u32::from_ne_bytes(read(message.payload, 8)?);
    let family = Family::ALL.into_iter().find(|known| family_number(*known) == family)?;
    let mut rule = Rule {
        priority: Priority(0),
        family,
        from: None,
        to: None,
        iif: None,
        oif: None,
        mark: None,
        table: Table(u32::from(table)),
        suppress_prefix_length: None,
    };
    let (mut mark, mut mask) = (None, None);
    let mut expressible = action == FR_ACT_TO_TBL && tos == 0 && flags & FIB_RULE_INVERT == 0;
    for attribute in message.attributes(HEADER) {
        match attribute.kind {
            FRA_DST => rule.to = Some(Prefix::new(attribute.address()?, to_length)?),
            FRA_SRC => rule.from = Some(Prefix::new(attribute.address()?, from_length)?),
            FRA_PRIORITY => rule.priority = Priority(attribute.u32()?),
            FRA_FWMARK => mark = attribute.u32(),
            FRA_FWMASK => mask = attribute.u32(),
            FRA_TABLE => rule.table = Table(attribute.u32()?),
            FRA_IIFNAME => rule.iif = attribute.text().map(str::to_owned),
            FRA_OIFNAME => rule.oif = attribute.text().map(str::to_owned),
            FRA_SUPPRESS_PREFIXLEN => {
                rule.suppress_prefix_length = attribute.u32().filter(|l| *l != NO_SUPPRESSION);
            }
            FRA_PROTOCOL | FRA_PAD => {}
            _ => expressible = false,
        }
    }
    if mark.is_some() || mask.is_some() {
        rule.mark = Some((Mark(mark.unwrap_or(0)), mask.unwrap_or(u32::MAX)));
    }
    if !expressible {
        if !RULE_PRIORITIES.contains(&rule.priority.0) {
            return None;
        }
        rule.table = FOREIGN_TABLE;
    }
    Some(rule)
}

/// `ip rule add`; an equal rule that is there already is fine.
pub async fn add(requester: &mut Requester, rule: &Rule) -> Result<(), Refusal> {
    match requester.request(&encode(rule)).await {
        Err(refusal) if refusal.is_one_of(&[Errno::EXIST]) => Ok(()),
        result => result.map(drop),
    }
}

/// `ip rule del`; a rule that is gone already is fine.
///
/// The kernel takes a selector that a request leaves out for "any" and deletes the first match, so
/// the request repeats the kernel's own description of the rule.
pub async fn delete(requester: &mut Requester, rule: &Rule) -> Result<(), Refusal> {
    let replies = dump(requester, rule.family).await?;
    let Some(found) = replies.iter().find(|message| self::rule(message).as_ref() == Some(rule))
    else {
        return Ok(());
    };
    match requester.request(&Request::new(RTM_DELRULE, 0, found.payload)).await {
        Err(refusal) if refusal.is_one_of(&[Errno::NOENT, Errno::SRCH]) => Ok(()),
        result => result.map(drop),
    }
}

fn encode(rule: &Rule) -> Request {
    let length = |prefix: Option<Prefix>| prefix.map_or(0, |prefix| prefix.length);
    let mut header = [0; HEADER];
    header[0] = family_number(rule.family);
    header[1] = length(rule.to);
    header[2] = length(rule.from);
    header[7] = FR_ACT_TO_TBL;
    let mut request = Request::new(RTM_NEWRULE, CREATE | EXCLUSIVE, &header)
        .u32(FRA_TABLE, rule.table.0)
        .u32(FRA_PRIORITY, rule.priority.0)
        .attribute(FRA_PROTOCOL, &[ROUTE_PROTOCOL]);
    if let Some(to) = rule.to {
        request = request.address(FRA_DST, to.network().address);
    }
    if let Some(from) = rule.from {
        request = request.address(FRA_SRC, from.network().address);
    }
    if let Some(iif) = &rule.iif {
        request = request.text(FRA_IIFNAME, iif);
    }
    if let Some(oif) = &rule.oif {
        request = request.text(FRA_OIFNAME, oif);
    }
    if let Some((Mark(mark), mask)) = rule.mark {
        request = request.u32(FRA_FWMARK, mark).u32(FRA_FWMASK, mask);
    }
    if let Some(length) = rule.suppress_prefix_length {
        request = request.u32(FRA_SUPPRESS_PREFIXLEN, length);
    }
    request
}

/// Reads anything as rules.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    super::netlink::messages(bytes).for_each(|message| drop(rule(&message)));
}

#[cfg(test)]
mod tests;
