use super::edit::{EditError, set_options};
use super::*;
use crate::config::mutate::{Random, mutated};

/// Sections in one line each: `type name[!] option=value list=[item,item]`; `!` is anonymous.
fn brief(text: &str) -> Vec<String> {
    let show = |section: &Section| {
        let mark = if section.anonymous { "!" } else { "" };
        let mut out = format!("{} {}{mark}", section.kind, section.name);
        for option in &section.options {
            match &option.value {
                Value::String(text) => out.push_str(&format!(" {}={text}", option.name)),
                Value::List(items) => {
                    let items: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
                    out.push_str(&format!(" {}=[{}]", option.name, items.join(",")));
                }
            }
        }
        out
    };
    parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}")).iter().map(show).collect()
}

/// Sections as `uci export` prints them, but for quotes around the type.
fn export(sections: &[Section]) -> String {
    let mut out = String::new();
    for section in sections {
        out.push_str(&format!("\nconfig {}", quote(&section.kind)));
        if !section.anonymous {
            out.push_str(&format!(" {}", quote(&section.name)));
        }
        out.push('\n');
        for option in &section.options {
            match &option.value {
                Value::String(text) => {
                    out.push_str(&format!("\toption {} {}\n", option.name, quote(text)));
                }
                Value::List(items) => {
                    for item in items {
                        out.push_str(&format!("\tlist {} {}\n", option.name, quote(&item.text)));
                    }
                }
            }
        }
    }
    out
}

fn options(text: &str) -> String {
    let sections = brief(&format!("config t n\n{text}"));
    assert_eq!(sections.len(), 1);
    sections[0].strip_prefix("t n").unwrap().trim_start().to_owned()
}

fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn commands_and_abbreviations() {
    let long = "package mptcpd\nconfig a 'n'\n\toption b 'c'\n\tlist d 'e'\n";
    assert_eq!(brief(long), ["a n b=c d=[e]"]);
    assert_eq!(brief("p mptcpd\nc a n\no b c\nl d e"), ["a n b=c d=[e]"]);
    assert_eq!(brief(""), [""; 0]);
    assert_eq!(brief("\n \t\r\n# only a comment"), [""; 0]);
}

#[test]
fn quoting() {
    assert_eq!(options("option a b"), "a=b");
    assert_eq!(options("option a 'b c'"), "a=b c");
    assert_eq!(options(r#"option a "b 'c' \"d\" \n""#), r#"a=b 'c' "d" n"#);
    assert_eq!(options(r"option a 'b\n'"), r"a=b\n");
    assert_eq!(options(r"option a b\ c\;d\#e\'f"), "a=b c;d#e'f");
    assert_eq!(options(r#"option a b'c d'"e f"g"#), "a=bc de fg");
    assert_eq!(options(r"option a 'it'\''s'"), "a=it's");
    assert_eq!(options("option 'a' 'b'"), "a=b");
    assert_eq!(options("option a 'ä'"), "a=ä");
}

#[test]
fn values_over_several_lines() {
    assert_eq!(options("option a 'b\n c'"), "a=b\n c");
    assert_eq!(options("option a \"b\n c\""), "a=b\n c");
    assert_eq!(options("option a \"b\\\n c\""), "a=b c");
    assert_eq!(options("option a \"b\\\r\n c\""), "a=b c");
    assert_eq!(options("option a b\\\nc"), "a=bc");
    assert_eq!(options("option a 'b\r\nc'\r\n"), "a=b\r\nc");
}

#[test]
fn comments() {
    assert_eq!(options("option a b # c"), "a=b");
    assert_eq!(options("option a b#c"), "a=b");
    assert_eq!(options("option a 'b#c' #'d"), "a=b#c");
    assert_eq!(options("\t# option a b\noption c d"), "c=d");
}

/// Observed with libuci: it ends an unquoted word in place, over the `;`.
#[test]
fn semicolons() {
    assert_eq!(options("option a 'b';option c 'd'"), "a=b c=d");
    assert_eq!(options("option a b ; option c d"), "a=b c=d");
    assert_eq!(options("option a b;option c d\noption e f"), "a=b e=f");
    assert_eq!(options("option a b\\;;option c d"), "a=b; c=d");
    assert!(parse("config t n\noption a 'b';\n").is_err());
    assert!(parse("config t n\noption a ; option b c\n").is_err());
}

#[test]
fn options_and_lists() {
    assert_eq!(options("option a b\noption a c\noption d e"), "a=c d=e");
    assert_eq!(options("list a b\nlist a ''\nlist a c"), "a=[b,,c]");
    assert_eq!(options("option a b\nlist a c"), "a=[b,c]");
    assert_eq!(options("list a b\nlist a c\noption x y\noption a d"), "a=d x=y");
    assert_eq!(options("option a ''"), "");
    assert_eq!(options("option a"), "");
    assert_eq!(options("option a b\noption a ''"), "a=b", "an empty value does not clear");
    assert_eq!(options("list a"), "a=[]");
}

#[test]
fn sections_of_one_name_merge() {
    let text = "config a n\noption b c\nconfig a m\nconfig a n\noption b d\noption e f\n";
    assert_eq!(brief(text), ["a n b=d e=f", "a m"]);
    assert_eq!(
        error("config a n\nconfig b n\n"),
        "line 2: section 'n' is of type b here and of type a on line 1"
    );
}

/// Names that `uci show` prints for the same files.
#[test]
fn anonymous_names() {
    assert_eq!(brief("config foo\nconfig foo ''\n"), ["foo cfg017389!", "foo cfg027389!"]);
    assert_eq!(brief("config a x\nconfig a\n"), ["a x", "a cfg02b606!"]);
    assert_eq!(brief("config foo\nconfig foo cfg017389\no a b\n"), ["foo cfg017389! a=b"]);
    let many = "config foo\n".repeat(256);
    assert_eq!(brief(&many)[255], "foo cfg1007389!");
}

#[test]
fn lines_are_those_of_the_command() {
    let text = "\nconfig a n\n\toption b 'c\n'; option d e\n\toption f g\n\tlist l 1\n\tlist l 2\n";
    let sections = parse(text).unwrap();
    let line = |name: &str| sections[0].option(name).unwrap().line;
    assert_eq!((sections[0].line, line("b"), line("d"), line("f"), line("l")), (2, 3, 4, 5, 6));
    let Value::List(items) = &sections[0].option("l").unwrap().value else { panic!() };
    assert_eq!(items[1].line, 7);
}

#[test]
fn errors_name_the_line_and_what_is_wrong() {
    for (text, line, what) in [
        ("option a b", 1, "before the first 'config'"),
        ("config a\n\noptions a b", 3, "'options' is not a command"),
        ("config a\noption a b c", 2, "from 'c' on"),
        ("config a\noption a-b c", 2, "'a-b' is not a name"),
        ("config a n-m", 1, "'n-m' is not a name"),
        ("config\n", 1, "must be followed by a name"),
        ("config 'a b'", 1, "not a section type"),
        ("config a n\noption b 'c\n\nd", 2, "begins with ' does not end"),
        ("config a n\noption b \"c\n", 2, "begins with \" does not end"),
        ("package a.b", 1, "'package' must"),
        ("config a\noption a 'b' ;\n", 2, "where a command must follow"),
        ("config a\noption a b\0\n", 2, "NUL"),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.line, line, "{text:?}: {error}");
        assert!(error.message.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn bytes_that_are_not_utf8() {
    assert!(parse_bytes(b"config a n # caf\xe9\n").is_ok());
    let error = parse_bytes(b"config a n\noption b 'caf\xe9'\n").unwrap_err();
    assert_eq!(error.to_string(), "line 2: a value that is not UTF-8");
    assert!(parse_bytes(b"config a\xe9 n").is_err());
}

#[test]
fn booleans() {
    for text in ["1", "on", "true", "yes", "enabled"] {
        assert_eq!(boolean(text), Some(true));
    }
    for text in ["0", "off", "false", "no", "disabled"] {
        assert_eq!(boolean(text), Some(false));
    }
    for text in ["", "On", "TRUE", "2", "y"] {
        assert_eq!(boolean(text), None);
    }
}

/// Quadratic time would take minutes.
#[test]
fn large_inputs_take_linear_time() {
    let lines = |line: &dyn Fn(usize) -> String| (0..100_000).map(line).collect::<String>();
    for text in [
        lines(&|n| format!("config a n{n}\noption b c\n")),
        format!("config a n\n{}", lines(&|n| format!("option o{n} v\n"))),
        format!("config a n\n{}", lines(&|_| "list l v\n".into())),
        format!("config a n\noption b '{}'", lines(&|_| "line\n".into())),
        format!("config a n\n{}", lines(&|_| "option a 'b' ; ".into())) + "option c d",
        format!("config a n\noption b {}c", lines(&|_| "\\\n".into())),
    ] {
        let start = std::time::Instant::now();
        parse(&text).unwrap();
        assert!(start.elapsed().as_secs() < 5, "{}", text.get(..40).unwrap());
    }
}

const EXAMPLE: &str = "package mptcpd\nconfig agent 'agent'\n\toption enabled '1'\n\tlist lan 'lan'\n\
    \tlist lan \"gu\\\"est\"\n\nconfig uplink\n\toption interface wan # comment\n\toption role 'bo''nd'\n \
    option x 'two\nlines' ; list y z\nconfig a b\nconfig a b\n";

#[test]
fn survives_100_000_mutated_inputs() {
    let tokens: [&[u8]; 16] = [
        b"config ",
        b"option ",
        b"list ",
        b"package ",
        b"\n",
        b"'",
        b"\"",
        b"\\",
        b"\\\n",
        b";",
        b"#",
        b" ",
        b"''",
        b"\r\n",
        b"\0",
        b"\xff",
    ];
    let mut random = Random(0xb0ad);
    let mut parsed = 0;
    for _ in 0..100_000 {
        let bytes = mutated(EXAMPLE.as_bytes(), &tokens, &mut random);
        let Ok(sections) = parse_bytes(&bytes) else { continue };
        parsed += 1;
        let again = parse(&export(&sections)).unwrap();
        let mut wished = sections;
        let mut got = again;
        for section in wished.iter_mut().chain(&mut got) {
            section.line = 0;
            for option in &mut section.options {
                option.line = 0;
                if let Value::List(items) = &mut option.value {
                    items.iter_mut().for_each(|item| item.line = 0);
                }
            }
        }
        assert_eq!(got, wished, "{}", String::from_utf8_lossy(&bytes));
    }
    assert!(parsed > 10_000, "{parsed} of the mutated inputs were still UCI");
}

#[test]
fn edits_change_only_their_lines() {
    let text = "# mine\nconfig uplink 'wan'\n\toption device eth1 # fibre\n\n\
        config server 'vps'\n    option port '1'   # old\n\toption cipher 'none'\n# end\nconfig x y";
    let set = [("address", "a.example"), ("port", "443")];
    assert_eq!(
        set_options(text, "server", "vps", &set).unwrap(),
        "# mine\nconfig uplink 'wan'\n\toption device eth1 # fibre\n\n\
         config server 'vps'\n\toption address 'a.example'\n    option port '443'\n\
         \toption cipher 'none'\n# end\nconfig x y"
    );
    let twice =
        set_options(&set_options(text, "server", "vps", &set).unwrap(), "server", "vps", &set);
    assert_eq!(twice, set_options(text, "server", "vps", &set));
}

#[test]
fn edits_append_a_section_that_is_not_there() {
    let set = [("a", "it's")];
    let section = "config server 'vps'\n\toption a 'it'\\''s'\n";
    for (text, joint) in
        [("", ""), ("config x y\n", "\n"), ("config x y", "\n\n"), ("config x y # c", "\n\n")]
    {
        assert_eq!(
            set_options(text, "server", "vps", &set).unwrap(),
            format!("{text}{joint}{section}")
        );
    }
}

/// Commands that share lines with others are left alone: a second section merges over them.
#[test]
fn edits_of_crowded_lines_append() {
    for text in [
        "config server 'vps' ; option a 'b' ; option c 'd'\n",
        "config server 'vps'\noption a 'b\nc'\n",
        "config server 'vps'\noption c 'd' ; option a 'b'\n",
        "config server 'vps'\nlist a b\nlist a c\n",
    ] {
        let edited = set_options(text, "server", "vps", &[("a", "z")]).unwrap();
        assert!(edited.starts_with(text), "{edited}");
        let sections = parse(&edited).unwrap();
        assert_eq!(sections.len(), 1);
        assert_eq!(sections[0].option("a").unwrap().value, Value::String("z".into()));
    }
}

#[test]
fn edits_of_what_is_not_uci_are_refused() {
    assert!(matches!(
        set_options("config 'a", "server", "vps", &[("a", "b")]),
        Err(EditError::Parse(_))
    ));
    let other_type = set_options("config uplink vps\n", "server", "vps", &[("a", "b")]);
    assert_eq!(other_type, Err(EditError::Layout));
}

#[test]
fn edits_of_mutated_texts_do_just_what_they_say() {
    let mut random = Random(0xed17);
    let mut edited = 0;
    let base = format!("{EXAMPLE}config server 'vps'\n\toption port 1\n\toption address 'x'\n");
    for _ in 0..20_000 {
        let bytes = mutated(base.as_bytes(), &[b"\n", b"'", b";", b" ; ", b"#"], &mut random);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let Ok(out) = set_options(&text, "server", "vps", &[("port", "443")]) else { continue };
        edited += 1;
        let sections = parse(&out).unwrap();
        let server = sections.iter().find(|section| section.name == "vps").unwrap();
        assert_eq!(server.option("port").unwrap().value, Value::String("443".into()), "{text}");
    }
    assert!(edited > 2_000, "{edited}");
}
