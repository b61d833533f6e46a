use super::*;

use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;

fn call(run_dir: &Path, method: &str) -> Result<String, CallError> {
    call_with(run_dir, method, Value::Null)
}

/// Runs a control socket whose owner answers by `answer`, while `body` is at work as its client.
fn with_control(
    answer: impl Fn(&Request) -> Result<String, String> + Send + 'static,
    body: impl FnOnce(&Path) + Send + 'static,
) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("a/b");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let control = Control::bind(&run_dir).await.unwrap();
        let (owner, mut requests) = mpsc::channel::<Request>(8);
        let client_dir = run_dir.clone();
        let client = tokio::task::spawn_blocking(move || body(&client_dir));
        let served = async {
            while let Some(request) = requests.recv().await {
                let answer = answer(&request);
                let _ = request.reply.send(answer.map_err(Refusal::parameters));
            }
        };
        tokio::select! {
            ended = client => ended.unwrap(),
            () = control.serve(owner) => panic!("serve ended"),
            () = served => panic!("no more requests"),
        }
        assert!(!run_dir.join(SOCKET).exists());
    });
}

fn raw(run_dir: &Path, request: &[u8]) -> String {
    let mut stream = StdUnixStream::connect(run_dir.join(SOCKET)).unwrap();
    // The server may have refused, and gone, before it has read everything.
    let _ = stream.write_all(request);
    let mut line = String::new();
    let _ = io::BufReader::new(stream).read_line(&mut line);
    line
}

#[test]
fn a_request_reaches_the_owner_and_its_answer_the_client_unchanged() {
    let answer = |request: &Request| match request.method.as_str() {
        "status" => Ok(r#"{"z":1,"a":[2.50]}"#.to_owned()),
        other => Err(format!("there is no method '{other}'\nat all")),
    };
    with_control(answer, |run_dir| {
        assert_eq!(call(run_dir, "status").unwrap(), r#"{"z":1,"a":[2.50]}"#);
        let Err(CallError::Refused(text)) = call(run_dir, "dance") else { panic!() };
        assert_eq!(text, "there is no method 'dance'\nat all");
        let asked = raw(run_dir, b"{\"method\":\"x\",\"since\":\"later versions\"}\n");
        assert_eq!(asked, "{\"error\":\"there is no method 'x'\\nat all\"}\n");
    });
}

/// What is followed, from a thread of its own.
fn follow(run_dir: &Path) -> Result<Vec<String>, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut lines = Lines::follow(run_dir, Value::Null).await?;
        let mut received = Vec::new();
        while let Some(line) = lines.next().await? {
            received.push(line);
        }
        Ok(received)
    })
}

#[test]
fn lines_follow_the_answer_until_the_owner_ends() {
    let answer = |request: &Request| {
        let lines = request.lines.as_ref().ok_or("no way for lines")?;
        for line in ["one", "two"] {
            lines.try_send(line.to_owned()).map_err(|error| error.to_string())?;
        }
        Ok("{}".to_owned())
    };
    with_control(answer, |run_dir| {
        assert_eq!(follow(run_dir).unwrap(), ["one", "two"]);
        let Err(CallError::Refused(text)) = call(run_dir, "status") else { panic!() };
        assert_eq!(text, "no way for lines");
    });
    with_control(
        |_| Err("full".to_owned()),
        |run_dir| assert!(matches!(follow(run_dir), Err(CallError::Refused(_)))),
    );
    let nobody = tempfile::tempdir().unwrap();
    assert!(matches!(follow(nobody.path()), Err(CallError::NotRunning(_))));
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    let answer = |request: &Request| {
        if let Some(lines) = &request.lines {
            while lines.try_send("x".repeat(4096)).is_ok() {}
        }
        Ok("{}".to_owned())
    };
    with_control(answer, |run_dir| {
        let mut idle = StdUnixStream::connect(run_dir.join(SOCKET)).unwrap();
        idle.write_all(b"{\"method\":\"monitor\"}\n").unwrap();
        for _ in 0..3 {
            assert_eq!(call(run_dir, "status").unwrap(), "{}");
        }
    });
}

#[test]
fn parameters_reach_the_owner() {
    let answer = |request: &Request| Ok(format!("[{}]", request.params));
    with_control(answer, |run_dir| {
        let params = serde_json::json!({ "name": "wan", "role": "off" });
        let answer = call_with(run_dir, "uplink", params.clone()).unwrap();
        assert_eq!(answer, format!("[{params}]"));
        assert_eq!(call(run_dir, "status").unwrap(), "[null]");
        assert_eq!(raw(run_dir, b"{\"method\":\"status\"}\n"), "{\"result\":[null]}\n");
    });
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    with_control(
        |_| Ok("1".into()),
        |run_dir| {
            let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
            assert_eq!(mode(&run_dir.join(SOCKET)), 0o600);
            assert_eq!(mode(run_dir) & 0o022, 0);
        },
    );
}

#[test]
fn a_second_instance_is_told_so_and_the_first_goes_on() {
    with_control(
        |_| Ok("1".into()),
        |run_dir| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let error = runtime.block_on(Control::bind(run_dir)).unwrap_err();
            assert!(matches!(error, ControlError::AlreadyRunning(_)), "{error}");
            assert_eq!(call(run_dir, "status").unwrap(), "1");
        },
    );
}

#[tokio::test]
async fn a_lock_that_a_child_still_has_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::bind(dir.path()).await.unwrap();
    let (kept, stdin) = StdUnixStream::pair().unwrap();
    let mut child = Command::new("cat")
        .stdin(OwnedFd::from(stdin))
        .stderr(control._lock.try_clone().unwrap())
        .spawn()
        .unwrap();
    drop(control);
    let end = async {
        sleep(3 * LOCK_PAUSE).await;
        drop(kept);
    };
    let (bound, ()) = tokio::join!(Control::bind(dir.path()), end);
    bound.unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn what_a_killed_instance_left_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let Err(CallError::NotRunning(_)) = call(dir.path(), "status") else { panic!() };
    drop(Control::bind(dir.path()).await.unwrap());
    assert!(!path.exists());
    let Err(CallError::NotRunning(_)) = call(dir.path(), "status") else { panic!() };

    std::fs::write(&path, "precious").unwrap();
    let error = Control::bind(dir.path()).await.unwrap_err();
    assert!(matches!(error, ControlError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(matches!(Control::bind(dir.path()).await, Err(ControlError::NotASocket(_))));
}

#[tokio::test]
async fn a_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Control::bind(&file.join("run")).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot make ") && error.contains("file/run"), "{error}");
    let long = dir.path().join("x".repeat(120));
    let error = Control::bind(&long).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot open "), "{error}");
}

#[test]
fn bad_requests_are_refused_and_others_served() {
    with_control(
        |_| Ok("1".into()),
        |run_dir| {
            for bad in [
                &b"\n"[..],
                b"{}\n",
                b"[]\n",
                b"\xff\n",
                b"{\"method\":7}\n",
                b"GET / HTTP/1.1\r\n",
            ] {
                let answer = raw(run_dir, bad);
                assert!(answer.starts_with("{\"error\":\"the request is no line"), "{answer}");
            }
            let answer = raw(run_dir, &vec![b'x'; 2 * REQUEST_LIMIT as usize]);
            assert!(answer.is_empty() || answer.contains("longer than 65536"), "{answer}");
            let mut deep = b"{\"method\":\"status\",\"other\":".to_vec();
            deep.extend(std::iter::repeat_n(b'[', 60_000));
            deep.push(b'\n');
            assert!(raw(run_dir, &deep).contains("the request is no line"));
            let deep = [&b"{\"method\":"[..], &[b'['; 60_000], b"\n"].concat();
            assert!(raw(run_dir, &deep).contains("the request is no line"));
            assert_eq!(call(run_dir, "status").unwrap(), "1");
        },
    );
}

#[test]
fn silent_clients_are_cut_and_then_others_have_their_turn() {
    with_control(
        |_| Ok("1".into()),
        |run_dir| {
            let silent: Vec<_> = (0..CLIENTS_LIMIT)
                .map(|_| StdUnixStream::connect(run_dir.join(SOCKET)).unwrap())
                .collect();
            // One more than the places there are: it waits until the silent ones are cut.
            assert_eq!(call(run_dir, "status").unwrap(), "1");
            for mut stream in silent {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                assert_eq!(text, "{\"error\":\"no request in time\"}\n");
            }
        },
    );
}

#[test]
fn many_clients_at_once_are_all_served() {
    with_control(
        |_| Ok("\"x\"".into()),
        |run_dir| {
            thread::scope(|scope| {
                for _ in 0..100 {
                    scope.spawn(|| assert_eq!(call(run_dir, "status").unwrap(), "\"x\""));
                }
            });
        },
    );
}

#[test]
fn answers_that_are_none_are_refused() {
    for bad in ["", "{}", "7", "{\"result\":1,\"error\":\"x\"}", "{\"result\":}", "{\"result\":1"] {
        assert!(matches!(read_answer(bad), Err(CallError::Protocol(_))), "{bad}");
    }
}
