# Shared by tools/test and tools/quickstart (sourced, not run): system packages and the virtual environment.
#
# Works on Debian 12+ and Ubuntu 24.04+. Installs system packages only when something is missing, says so, and needs
# root or sudo only then. Settings:
#   KVFS_PYTHON   interpreter to use instead of the first one that works
#   KVFS_VENV     where the environment goes (default: .venv in the repository)

KVFS_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
KVFS_VENV=${KVFS_VENV:-$KVFS_REPO/.venv}

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# True if $1 is Python >= 3.11 that can make environments and has the headers which pyfuse3 is compiled with.
python_works() {
    "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(0 if sys.version_info >= (3, 11) and os.path.exists(header) else 1)
PY
}

# Prints the real path of the first interpreter that works (a version switcher's shim is resolved to what it runs).
find_python() {
    local candidate
    for candidate in ${KVFS_PYTHON:-python3 python3.11 python3.12 python3.13 /usr/bin/python3}; do
        if command -v "$candidate" >/dev/null && python_works "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# Prints the Debian packages for what this machine lacks, by looking for the thing itself rather than for the package.
missing_packages() {
    command -v gcc >/dev/null || printf 'gcc '
    [ -e /usr/include/stdio.h ] || printf 'libc6-dev '
    command -v pkg-config >/dev/null || printf 'pkg-config '
    { command -v pkg-config >/dev/null && pkg-config --exists fuse3; } || printf 'libfuse3-dev '
    command -v fusermount3 >/dev/null || printf 'fuse3 '
    [ -n "${KVFS_PYTHON:-}" ] || find_python >/dev/null || printf 'python3 python3-venv python3-dev '
}

install_packages() {
    local packages=$1 sudo=()
    if ! command -v apt-get >/dev/null; then
        fail "this machine lacks: $packages(Debian package names); install them and run this again"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing packages need root: apt-get install $packages"
        sudo=(sudo)
        [ -t 0 ] || sudo+=(-n)
    fi
    say "installing missing system packages: $packages"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update </dev/null >&2 ||
        say "apt-get update failed; going on with the package lists that are here"
    # shellcheck disable=SC2086 -- a list of words
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $packages \
        </dev/null >&2 || fail "could not install: $packages"
}

# What the environment was made from; a different answer means that it has to be brought up to date.
environment_stamp() {
    { cat "$KVFS_REPO/pyproject.toml"; printf '%s %s\n' "$KVFS_REPO" "$1"; "$1" --version; } | sha256sum
}

# System packages, then .venv with kvfs installed editable. A second call is a comparison of two lines.
setup_environment() {
    local packages python stamp
    packages=$(missing_packages)
    if [ -n "$packages" ]; then
        install_packages "$packages"
        packages=$(missing_packages)
        [ -z "$packages" ] || fail "still missing after installation: $packages"
    fi
    python=$(find_python) || fail "no working Python >= 3.11 with venv and headers${KVFS_PYTHON:+ at $KVFS_PYTHON}"
    stamp=$(environment_stamp "$python")
    if [ "$(cat "$KVFS_VENV/.kvfs-stamp" 2>/dev/null)" != "$stamp" ]; then
        say "preparing $KVFS_VENV with $python ..."
        rm -f "$KVFS_VENV/.kvfs-stamp"
        "$python" -m venv --clear "$KVFS_VENV" || fail "could not make $KVFS_VENV"
        "$KVFS_VENV/bin/python" -m pip install -q --disable-pip-version-check -e "$KVFS_REPO[test]" </dev/null ||
            fail "could not install kvfs and its libraries into $KVFS_VENV"
        printf '%s\n' "$stamp" >"$KVFS_VENV/.kvfs-stamp"
    fi
    export PATH="$KVFS_VENV/bin:$PATH"
}
