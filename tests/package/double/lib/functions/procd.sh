# shellcheck shell=sh
# shellcheck disable=SC3043 # dash, bash and busybox have 'local'
# A double of procd's shell library: the JSON that procd would get, as far as it is looked at.

# dash cannot tell.
signal_number() {
	case $1 in HUP) echo 1 ;; USR1) echo 10 ;; esac
}

array() {
	local text='' word
	for word; do text="${text:+$text,}\"$word\""; done
	echo "[$text]"
}

procd_open_service() {
	service=$1
	instance=
	mounts=
	jail=
	triggers=
}

procd_open_instance() { :; }

procd_set_param() {
	local name="$1" value
	shift
	case $name in
	command | file | respawn) value=$(array "$@") ;;
	env | limits) value="{\"${1%%=*}\":\"${1#*=}\"}" ;;
	reload_signal) value=$(signal_number "$1") ;;
	term_timeout) value=$1 ;;
	stdout | stderr | no_new_privs) value=true ;;
	*) value="\"$1\"" ;;
	esac
	instance="${instance:+$instance,}\"$name\":$value"
}

procd_add_jail() {
	jail="\"name\":\"$1\""
	shift
	for flag; do jail="$jail,\"$flag\":true"; done
}

procd_add_jail_mount() {
	for path; do mounts="${mounts:+$mounts,}\"$path\":\"0\""; done
}

procd_add_jail_mount_rw() {
	for path; do mounts="${mounts:+$mounts,}\"$path\":\"1\""; done
}

procd_close_instance() {
	[ -z "$jail" ] || instance="$instance,\"jail\":{$jail,\"mount\":{$mounts}}"
}

procd_add_reload_trigger() {
	triggers="[\"config.change\",[\"if\",[\"eq\",\"package\",\"$1\"],[\"run_script\",\"/etc/init.d/$service\",\"reload\"]],1000]"
}

procd_close_service() {
	ubus call service set "{\"name\":\"$service\",\"instances\":{\"instance1\":{$instance}},\"triggers\":[$triggers]}"
}

procd_send_signal() {
	ubus call service signal "{\"name\":\"$1\",\"signal\":$(signal_number "$3")}"
}
