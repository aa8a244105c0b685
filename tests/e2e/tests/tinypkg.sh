# Makes a Python package in $LOCAL/p that needs nothing from anywhere.
mkdir -p "$LOCAL/p/tinypkg"; cat >"$LOCAL/p/pyproject.toml" <<'T'
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tinypkg"
version = "1.0"
T
echo 'def f(): return 42' >"$LOCAL/p/tinypkg/__init__.py"
cat >"$LOCAL/p/backend.py" <<'PY'
import zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "tinypkg-1.0-py3-none-any.whl"; info = "tinypkg-1.0.dist-info/"
    with zipfile.ZipFile(directory + "/" + name, "w") as z:
        z.write("tinypkg/__init__.py", "tinypkg/__init__.py")
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: e2e\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(info + "RECORD", "tinypkg/__init__.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n")
    return name
PY
