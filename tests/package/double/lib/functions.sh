# shellcheck shell=sh
# shellcheck disable=SC1090,SC3043 # dash, bash and busybox have 'local'
# A double of OpenWrt's shell library, as far as the files of this project use it.

# Sections are evaluated as shell commands, as the text of 'uci export' is.
config() {
	SECTION=${2:-cfg$((COUNT += 1))}
	SECTIONS="$SECTIONS $SECTION"
	eval "CONFIG_${SECTION}_TYPE=\$1"
}

option() {
	eval "CONFIG_${SECTION}_$1=\$2"
}

list() {
	append "CONFIG_${SECTION}_$1" "$2"
}

config_load() {
	SECTIONS=
	COUNT=0
	[ ! -e "/etc/config/$1" ] || eval "$(cat "/etc/config/$1")"
}

config_get() {
	eval "$1=\${CONFIG_$2_$3:-\$4}"
}

config_foreach() {
	local function="$1" type section
	for section in $SECTIONS; do
		config_get type "$section" TYPE
		[ "$type" != "$2" ] || "$function" "$section"
	done
}

append() {
	eval "$1=\"\${$1:+\$$1 }\$2\""
}

list_contains() {
	eval "case \" \$$1 \" in *\" \$2 \"*) return 0 ;; esac"
	return 1
}

package_files() {
	grep "^$1" "/usr/lib/opkg/info/$pkgname.list"
}

default_postinst() {
	local script pkgname
	pkgname=$(basename "${1%.*}")
	for script in $(package_files /etc/uci-defaults/); do
		(. "$script") && rm -f "$script"
	done
	[ ! -e "${1%.*}.postinst-pkg" ] || (. "${1%.*}.postinst-pkg")
	for script in $(package_files /etc/init.d/); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" enable
		"$script" start
	done
}

default_prerm() {
	local script pkgname
	pkgname=$(basename "${1%.*}")
	for script in $(package_files /etc/init.d/); do
		[ "$PKG_UPGRADE" = 1 ] || "$script" disable
		"$script" stop
	done
}
