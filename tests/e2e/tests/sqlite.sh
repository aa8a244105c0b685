# Transactions one by one, each committed, some rolled back; then the whole file is checked.
TRANSACTIONS=$([ -n "${SANDPAIL_LONG:-}" ] && echo 10000 || echo 200)
[ "$MODE" = wal ] && [ "$TRANSACTIONS" = 10000 ] && TRANSACTIONS=2000
"$PYTHON" - "$MODE" "$TRANSACTIONS" <<'PY'
import sqlite3, sys
mode, count = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect("a.db", isolation_level=None, timeout=60)
assert db.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
db.execute("create table t (n integer primary key, body text)")
db.execute("create index i on t (body)")
kept = 0
for n in range(count):
    db.execute("begin")
    db.execute("insert into t values (?, ?)", (n, f"body {n}" * 20))
    db.execute("update t set body = body || 'x' where n = ?", (n // 2,))
    if n % 10 == 9:
        db.execute("rollback")
    else:
        db.execute("commit")
        kept += 1
assert db.execute("select count(*) from t").fetchone()[0] == kept
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
other = sqlite3.connect("a.db", timeout=60)
assert other.execute("select count(*) from t").fetchone()[0] == kept
other.close()
db.execute("vacuum")
db.close()
PY
sqlite3 a.db 'pragma integrity_check' | grep -qx ok
[ "$(ls -A)" = a.db ]
cp a.db "$LOCAL/copy.db"
sqlite3 "$LOCAL/copy.db" 'pragma integrity_check' | grep -qx ok
