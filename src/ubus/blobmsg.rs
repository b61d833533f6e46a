//! Values in attributes (`blobmsg.h`), which correspond to those of JSON.
//!
//! What JSON has one kind of number for goes as `INT32`, as `INT64` where that is too small, or as
//! `DOUBLE`. Whole numbers are signed, for so they are shown.

use serde_json::Value;

use super::blob::{self, Attribute};
use super::{MESSAGE_LIMIT, Malformed, Table, TooLarge};

/// How deep values may be nested.
pub const DEPTH_LIMIT: usize = 32;

/// A null (`BLOBMSG_TYPE_UNSPEC`).
const NULL: u8 = 0;
const ARRAY: u8 = 1;
const TABLE: u8 = 2;
/// A string.
pub const STRING: u8 = 3;
const INT64: u8 = 4;
const INT32: u8 = 5;
const INT16: u8 = 6;
/// A truth value; JSON has no other use for a byte (`BLOBMSG_TYPE_BOOL`).
const BOOL: u8 = 7;
const DOUBLE: u8 = 8;

/// A table's values.
///
/// # Errors
/// [`TooLarge`].
pub fn encode(table: &Table) -> Result<Vec<u8>, TooLarge> {
    let mut bytes = Vec::new();
    put_table(&mut bytes, table)?;
    Ok(bytes)
}

/// Appends a table's values, without a head of its own.
pub(super) fn put_table(out: &mut Vec<u8>, table: &Table) -> Result<(), TooLarge> {
    put_members(out, table, 0)
}

fn put_members(out: &mut Vec<u8>, table: &Table, depth: usize) -> Result<(), TooLarge> {
    table.iter().try_for_each(|(name, value)| put(out, name, value, depth))
}

fn put(out: &mut Vec<u8>, name: &str, value: &Value, depth: usize) -> Result<(), TooLarge> {
    if depth == DEPTH_LIMIT || out.len() > MESSAGE_LIMIT {
        return Err(TooLarge);
    }
    let start = blob::open(out);
    put_name(out, name)?;
    match value {
        Value::Null => {}
        Value::Bool(value) => out.push((*value).into()),
        Value::Number(number) => match (kind(value), number.as_i64()) {
            (INT32, Some(value)) => out.extend((value as i32).to_be_bytes()),
            (_, Some(value)) => out.extend(value.to_be_bytes()),
            (_, None) => out.extend(number.as_f64().unwrap_or_default().to_be_bytes()),
        },
        Value::String(text) => put_text(out, text),
        Value::Array(values) => {
            values.iter().try_for_each(|value| put(out, "", value, depth + 1))?;
        }
        Value::Object(table) => put_members(out, table, depth + 1)?,
    }
    blob::close(out, start, kind(value), true);
    Ok(())
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => BOOL,
        Value::Number(number) => match number.as_i64() {
            Some(value) if i32::try_from(value).is_ok() => INT32,
            Some(_) => INT64,
            None => DOUBLE,
        },
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::Object(_) => TABLE,
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) -> Result<(), TooLarge> {
    let start = out.len();
    let length = u16::try_from(name.len()).map_err(|_| TooLarge)?;
    out.extend(length.to_be_bytes());
    out.extend(name.as_bytes());
    out.push(0);
    blob::pad(out, start);
    Ok(())
}

/// A C string: it ends where the text has a NUL.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = text.split('\0').next().unwrap_or_default();
    out.extend(text.as_bytes());
    out.push(0);
}

/// Reads a table's values. Of several with one name the last counts; what is not UTF-8 is replaced.
///
/// # Errors
/// [`Malformed`].
pub fn table(bytes: &[u8]) -> Result<Table, Malformed> {
    members(bytes, 0)
}

fn members(bytes: &[u8], depth: usize) -> Result<Table, Malformed> {
    // Collecting would sort first, with 3 kB of code that nothing else needs.
    let mut table = Table::new();
    for attribute in blob::attributes(bytes) {
        let (name, value) = named(attribute?, depth)?;
        table.insert(name, value);
    }
    Ok(table)
}

fn named(attribute: Attribute, depth: usize) -> Result<(String, Value), Malformed> {
    if !attribute.extended {
        return Err(Malformed);
    }
    let (name, data) = split_name(attribute.data)?;
    Ok((String::from_utf8_lossy(name).into_owned(), value(attribute.id, data, depth)?))
}

fn value(kind: u8, data: &[u8], depth: usize) -> Result<Value, Malformed> {
    if depth == DEPTH_LIMIT {
        return Err(Malformed);
    }
    Ok(match kind {
        NULL => Value::Null,
        BOOL => Value::Bool(exact::<1>(data)? != [0]),
        INT16 => i16::from_be_bytes(exact(data)?).into(),
        INT32 => i32::from_be_bytes(exact(data)?).into(),
        INT64 => i64::from_be_bytes(exact(data)?).into(),
        DOUBLE => f64::from_be_bytes(exact(data)?).into(),
        STRING => text(data)?.into(),
        ARRAY => blob::attributes(data)
            .map(|attribute| element(attribute?, depth + 1))
            .collect::<Result<Vec<Value>, Malformed>>()?
            .into(),
        TABLE => members(data, depth + 1)?.into(),
        _ => return Err(Malformed),
    })
}

/// A value in an array: it may have an empty name, or none.
fn element(attribute: Attribute, depth: usize) -> Result<Value, Malformed> {
    match attribute.extended {
        true => value(attribute.id, split_name(attribute.data)?.1, depth),
        false => value(attribute.id, attribute.data, depth),
    }
}

fn split_name(data: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = data.split_first_chunk().ok_or(Malformed)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let name = rest.get(..length).ok_or(Malformed)?;
    if rest.get(length) != Some(&0) {
        return Err(Malformed);
    }
    let head = (2 + length + 1).next_multiple_of(4);
    Ok((name, data.get(head..).ok_or(Malformed)?))
}

/// The text of a C string.
pub(super) fn text(data: &[u8]) -> Result<String, Malformed> {
    if data.last() != Some(&0) {
        return Err(Malformed);
    }
    let end = data.iter().position(|&byte| byte == 0).unwrap_or_default();
    Ok(String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned())
}

fn exact<const N: usize>(data: &[u8]) -> Result<[u8; N], Malformed> {
    data.try_into().map_err(|_| Malformed)
}
