mod golden;
mod property;

use super::*;

/// Carries out one operation on a dump as the kernel would, or says why it fails.
pub(crate) fn apply_to_model(kernel: &mut Kernel, operation: &Operation) -> Result<(), String> {
    match operation {
        Operation::ReplaceRoute(route) => {
            match kernel.routes.iter_mut().find(|found| key(found) == key(route)) {
                Some(found) => *found = route.clone(),
                None => kernel.routes.push(route.clone()),
            }
        }
        Operation::DeleteRoute(route) => remove(&mut kernel.routes, |found| found == route)?,
        Operation::AddRule(rule) if kernel.rules.contains(rule) => return Err("EEXIST".into()),
        Operation::AddRule(rule) => kernel.rules.push(rule.clone()),
        Operation::DeleteRule(rule) => remove(&mut kernel.rules, |found| found == rule)?,
        Operation::AddEndpoint(endpoint) => {
            let clash =
                |found: &Endpoint| found.id == endpoint.id || found.address == endpoint.address;
            if kernel.endpoints.iter().any(clash) {
                return Err("EEXIST".into());
            }
            if kernel.endpoints.len() >= MAX_ENDPOINTS {
                return Err("ERANGE".into());
            }
            kernel.endpoints.push(endpoint.clone());
        }
        Operation::DeleteEndpoint(endpoint) => {
            remove(&mut kernel.endpoints, |found| found.id == endpoint.id)?;
        }
        Operation::ChangeEndpoint(endpoint) => {
            let found = kernel.endpoints.iter_mut().find(|found| found.id == endpoint.id);
            let found = found.ok_or("ENOENT")?;
            (found.backup, found.other_flags) = (endpoint.backup, endpoint.other_flags);
        }
        Operation::SetLimits(limits) => *kernel.limits.as_mut().ok_or("no MPTCP")? = *limits,
        Operation::SetSysctl { key, value } => {
            *kernel.sysctls.get_mut(key).ok_or("ENOENT")? = value.replace(' ', "\t");
        }
        Operation::ReplaceNft(text) => kernel.nft = NftTable::Made(text.clone()),
        Operation::DeleteNft if kernel.nft == NftTable::Absent => return Err("ENOENT".into()),
        Operation::DeleteNft => kernel.nft = NftTable::Absent,
    }
    Ok(())
}

fn remove<T>(items: &mut Vec<T>, matches: impl Fn(&T) -> bool) -> Result<(), String> {
    let position = items.iter().position(matches).ok_or("ENOENT")?;
    items.remove(position);
    Ok(())
}

fn apply(kernel: &mut Kernel, plan: &[Operation]) {
    for operation in plan {
        if let Err(error) = apply_to_model(kernel, operation) {
            panic!("{operation}: {error}");
        }
    }
}
