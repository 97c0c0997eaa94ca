use super::*;

fn until(ms: u64) -> Until {
    Until { deadline: Instant::now() + Duration::from_millis(ms), cancelled: Arc::default() }
}

fn sql(text: &str) -> Statement {
    Statement { sql: text.to_owned(), params: Vec::new() }
}

fn open(name: &str, quota: u64) -> (Private, std::path::PathBuf) {
    let folder = std::env::temp_dir().join(format!("aman-private-{name}-{}", std::process::id()));
    let _old = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    (Private::open(&folder.join("x.db"), quota).expect("a new database opens"), folder)
}

fn run(private: &mut Private, text: &str) -> Result<Vec<u64>, Error> {
    private.execute(&[sql(text)], &until(60_000))
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Forbidden { code, .. } | Error::Conflict { code, .. } | Error::Invalid { code, .. } => code,
        Error::Internal { .. } => "internal",
        _ => "other",
    }
}

#[test]
fn statements_work_and_are_counted() {
    let (mut private, folder) = open("works", 1 << 20);
    let counts = private.execute(
        &[
            sql("CREATE TABLE feed (id INTEGER PRIMARY KEY, title TEXT NOT NULL)"),
            Statement {
                sql: "INSERT INTO feed (title) VALUES (?1), (?1)".into(),
                params: vec![Value::Text("é".into())],
            },
            sql("PRAGMA user_version = 3"),
            sql("UPDATE feed SET title = 'b' WHERE id = 1"),
        ],
        &until(60_000),
    );
    assert_eq!(counts.expect("good statements"), [0, 2, 0, 1]);
    let rows = private.query(&sql("SELECT id, title, x'00ff', 1.5, NULL FROM feed ORDER BY id"), &until(60_000));
    let rows = rows.expect("a good query");
    assert_eq!(rows.rows[1][..2], [Value::Integer(2), Value::Text("é".into())]);
    assert_eq!(rows.columns[..2], ["id", "title"]);
    let made = private.query(&sql("INSERT INTO feed (title) VALUES ('c') RETURNING id"), &until(60_000));
    assert_eq!(made.expect("it returns").rows, [[Value::Integer(3)]]);
    run(&mut private, "CREATE VIRTUAL TABLE words USING fts5(text)").expect("full text search is there");
    run(&mut private, "INSERT INTO words VALUES ('a needle in hay')").expect("it takes text");
    let found = private.query(&sql("SELECT count(*) FROM words WHERE words MATCH 'needle'"), &until(60_000));
    assert_eq!(found.expect("it finds").rows, [[Value::Integer(1)]]);
    run(&mut private, "ALTER TABLE feed ADD COLUMN url TEXT").expect("tables can be changed");
    let failed = private.execute(&[sql("DELETE FROM feed"), sql("INSERT INTO feed (id) VALUES (9)")], &until(60_000));
    assert_eq!(code(&failed.expect_err("title is missing")), CONSTRAINT);
    let left = private.query(&sql("SELECT count(*) FROM feed"), &until(60_000)).expect("a query");
    assert_eq!(left.rows, [[Value::Integer(3)]], "all or none");
    let _gone = std::fs::remove_dir_all(folder);
}

#[test]
fn what_reaches_out_of_the_file_or_at_the_daemons_rows_is_refused() {
    let (mut private, folder) = open("refused", 1 << 20);
    for text in [
        "ATTACH '/tmp/other.db' AS other",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '/tmp/copy.db'",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
        "PRAGMA journal_mode = OFF",
        "PRAGMA max_page_count = 1000000",
        "PRAGMA temp_store_directory = '/'",
        "PRAGMA writable_schema = ON",
        "PRAGMA trusted_schema = ON",
        "PRAGMA synchronous = OFF",
        "PRAGMA page_size = 512",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA hard_heap_limit = 1",
        "PRAGMA locking_mode",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "CREATE TEMP TABLE t (a)",
        "CREATE TABLE aman_more (a)",
        "DROP TABLE aman_settled",
        "DELETE FROM AMAN_settled",
        "INSERT INTO aman_settled VALUES ('x', 1, '[]', 1)",
        "CREATE INDEX i ON aman_settled (at_ms)",
        "CREATE TRIGGER t AFTER INSERT ON aman_settled BEGIN SELECT 1; END",
        "ALTER TABLE aman_settled RENAME TO mine",
        "CREATE VIRTUAL TABLE v USING dbstat",
        "DELETE FROM sqlite_schema",
    ] {
        let refused = run(&mut private, text).expect_err(text);
        assert!(matches!(code(&refused), DENIED | "invalid_input"), "{text}: {refused:?}");
        let refused = private.query(&sql(text), &until(60_000)).expect_err(text);
        assert!(matches!(code(&refused), DENIED | "invalid_input"), "{text}: {refused:?}");
        assert!(!private.is_begun(), "{text}");
    }
    for text in ["SELECT * FROM aman_settled", "SELECT * FROM pragma_journal_mode", "SELECT 1; SELECT 2"] {
        assert!(private.query(&sql(text), &until(60_000)).is_err(), "{text}");
    }
    for text in
        ["PRAGMA table_info(aman_settled)", "PRAGMA user_version", "PRAGMA page_count", "SELECT sqlite_version()"]
    {
        assert!(private.query(&sql(text), &until(60_000)).is_ok(), "{text}");
    }
    assert_eq!(std::fs::read_dir(&folder).expect("it is there").count(), 3, "the file, its log and its index");
    let _gone = std::fs::remove_dir_all(folder);
}

#[test]
fn endless_and_endlessly_large_things_are_ended() {
    let (mut private, folder) = open("bounds", 256 << 10);
    let count = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";
    let begun = Instant::now();
    let ended = private.query(&sql(&format!("{count} SELECT count(*) FROM c")), &until(200)).expect_err("endless");
    assert_eq!(code(&ended), TOO_LONG);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let cancelled = until(600_000);
    cancelled.cancelled.store(true, Ordering::Relaxed);
    assert!(private.query(&sql(&format!("{count} SELECT count(*) FROM c")), &cancelled).is_err());
    for text in [format!("{count} SELECT x FROM c"), "SELECT zeroblob(100000000)".to_owned()] {
        assert_eq!(code(&private.query(&sql(&text), &until(60_000)).expect_err(&text)), TOO_MUCH, "{text}");
    }
    run(&mut private, "CREATE TABLE t (a BLOB)").expect("a small table fits");
    let mut fits = 0;
    let full = loop {
        match run(&mut private, "INSERT INTO t VALUES (randomblob(20000))") {
            Ok(_) => fits += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((code(&full), (8..13).contains(&fits)), (TOO_MUCH, true), "{fits}");
    assert!(private.bytes().expect("a size") <= 256 << 10);
    run(&mut private, "DELETE FROM t").expect("room can be made");
    run(&mut private, "INSERT INTO t VALUES (randomblob(20000))").expect("and used");
    let _gone = std::fs::remove_dir_all(folder);
}

#[test]
fn what_was_settled_outlives_the_connection_and_the_rest_does_not() {
    let (mut private, folder) = open("settled", 1 << 20);
    run(&mut private, "CREATE TABLE t (a)").expect("a table");
    private.begin().expect("a transaction");
    run(&mut private, "INSERT INTO t VALUES (1)").expect("inside");
    assert!(run(&mut private, "INSERT INTO nowhere VALUES (1)").is_err() && private.is_begun());
    private.settle("delivery-1", 1, b"effects", 5).expect("it lasts");
    private.begin().expect("another");
    run(&mut private, "INSERT INTO t VALUES (2)").expect("inside");
    drop(private);
    let mut private = Private::open(&folder.join("x.db"), 1 << 20).expect("it opens again");
    assert_eq!(private.settled("delivery-1", 1).expect("a look").as_deref(), Some(b"effects".as_slice()));
    assert_eq!(private.settled("delivery-1", 2).expect("a look"), None);
    let rows = private.query(&sql("SELECT a FROM t"), &until(60_000)).expect("a query");
    assert_eq!(rows.rows, [[Value::Integer(1)]]);
    // A write that is broken off ends the whole transaction, and that shows.
    private.begin().expect("another");
    let endless = "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c \
        WHERE x < 0";
    assert_eq!(code(&private.execute(&[sql(endless)], &until(100)).expect_err("endless")), TOO_LONG);
    assert!(!private.is_begun());
    for n in 2..=i64::try_from(KEPT_MIN).expect("small") {
        assert!(private.old_deliveries().expect("a look").is_empty());
        private.begin().expect("a transaction");
        private.settle(&format!("delivery-{n}"), n, b"", 5).expect("it lasts");
    }
    let old = private.old_deliveries().expect("a look");
    assert_eq!(old.len(), KEPT_MIN);
    private.begin().expect("a transaction");
    private.forget(&old[1..]).expect("they go");
    private.settle("delivery-x", 1000, b"", 5).expect("it lasts");
    assert!(private.settled("delivery-1", 1).expect("a look").is_some());
    assert!(private.settled("delivery-2", 2).expect("a look").is_none());
    let _gone = std::fs::remove_dir_all(folder);
}

#[test]
fn what_is_written_meanwhile_is_bounded() {
    let (mut private, folder) = open("spill", 256 << 10);
    private.spill_max = 16 << 20;
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)";
    for text in [
        format!("{many} SELECT randomblob(20000) AS r FROM n ORDER BY r"),
        format!("{many} SELECT count(DISTINCT randomblob(20000)) FROM n"),
        format!("{many} SELECT count(*) FROM (SELECT randomblob(20000) FROM n UNION SELECT i FROM n)"),
    ] {
        let error = private.query(&sql(&text), &until(60_000)).expect_err(&text);
        assert_eq!((code(&error), error.to_string().contains("temporary files")), (TOO_MUCH, true), "{text}: {error}");
    }
    private.spill_max = SPILL_BYTES_MAX;
    let few = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) \
        SELECT max(length(r)) FROM (SELECT DISTINCT randomblob(500) AS r FROM n)";
    assert_eq!(private.query(&sql(few), &until(60_000)).expect("it fits").rows, [[Value::Integer(500)]]);
    let _gone = std::fs::remove_dir_all(folder);
}

#[test]
fn polls_keep_one_row() {
    let (mut private, folder) = open("polls", 1 << 20);
    for n in 0..5 {
        private.begin().expect("a transaction");
        private.settle("poll/feeds", n, b"", 5).expect("it lasts");
    }
    assert_eq!((kept(&private.conn).expect("a count"), private.kept), (1, 0));
    assert_eq!(private.settled("poll/feeds", 3).expect("a look"), None);
    assert!(private.settled("poll/feeds", 4).expect("a look").is_some());
    let _gone = std::fs::remove_dir_all(folder);
}
