# In a mount, when the programs of survive.py are done: what it has is what they were told, which they left in $LOCAL.
diff -r files "$LOCAL/expected"
(cd repo; git fsck --strict; [ -z "$(git status --porcelain)" ])
"$PYTHON" - "$(cat "$LOCAL/rows")" <<'PY'
import sqlite3, sys
db = sqlite3.connect("db")
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
found = db.execute("select max(n) from t").fetchone()[0]
assert found == int(sys.argv[1]), found
PY
[ "$(ls many | wc -l)" = 300 ]
[ -z "$(find . -name '*conflict*' -o -name '*recovered*')" ]
