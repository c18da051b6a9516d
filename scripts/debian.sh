# Sourced by the other scripts: reads Debian packages without installing them and without root.
# Expects $cache (the project's .cache).

# The machine's own package lists where they know the package; otherwise private ones in .cache.
debian_apt() {
    if ! command -v apt-get >/dev/null; then
        echo "this script reads packages from Debian and needs apt-get; put the files it makes into $cache by hand" >&2
        return 1
    fi
    apt_options=""
    if [ -z "$(apt-cache madison "$1" 2>/dev/null)" ]; then
        mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
        apt_options="-o Dir::State::lists=$cache/apt/lists -o Dir::Cache=$cache/apt/cache -o Debug::NoLocking=1"
        if [ -z "$(apt-cache $apt_options madison "$1" 2>/dev/null)" ]; then
            echo "reading the package lists" >&2
            apt-get $apt_options -qq update >&2
        fi
    fi
}

# debian_download DIR PACKAGE...: puts the newest .deb of each package into DIR.
debian_download() {
    debian_dir=$1
    shift
    debian_apt "$1"
    mkdir -p "$debian_dir"
    # As root apt drops privileges to a user who may not write here; it only warns about that.
    (cd "$debian_dir" && apt-get $apt_options -qq -o APT::Sandbox::User=root download "$@")
}
