//! Times on a machine that has other work now and then.

/// An attempt within its limits, or two more that both are: the median of three is then within them.
///
/// # Errors
/// What is wrong with the last attempt.
pub fn two_of_three<E>(mut attempt: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    if attempt().is_ok() {
        return Ok(());
    }
    attempt()?;
    attempt()
}
