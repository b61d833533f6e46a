use super::*;

#[test]
fn an_error_names_operation_and_errno() {
    let cause = Cause::from(Refusal { errno: libc::EEXIST, explanation: String::new() });
    let error = OperationError {
        operation: "ip rule add pref 510 lookup 5001".into(),
        errno: cause.errno,
        reason: cause.reason,
    };
    assert_eq!(error.to_string(), "ip rule add pref 510 lookup 5001: EEXIST (File exists)");
    assert_eq!(error.errno, Some(17));
}

#[test]
fn errors_of_files_and_programs_keep_what_they_know() {
    let file = Cause::from(io::Error::from_raw_os_error(libc::ENOENT));
    assert_eq!((file.errno, &*file.reason), (Some(2), "ENOENT (No such file or directory)"));
    let program = Cause::from(io::Error::other("nft: line 1: syntax error"));
    assert_eq!((program.errno, &*program.reason), (None, "nft: line 1: syntax error"));
}
