'use strict';
'require baseclass';

/* What is wrong, and what to do about it. */

function notice(style, children) {
	return E('div', { 'class': 'alert-message %s'.format(style) }, children);
}

function link(path, title) {
	return E('a', { 'href': L.url(...path) }, [ title ]);
}

const settings = () => link([ 'admin', 'services', 'mptcp-bond', 'settings' ], _('Settings'));
const startup = () => link([ 'admin', 'system', 'startup' ], _('Startup'));

return baseclass.extend({
	warning(words) {
		return notice('warning', [ words ]);
	},

	/* Of a call that failed. */
	ofFailure(failure) {
		const advice = (failure.kind == 'absent') ? [
			E('p', {}, [
				_('Start it with "/etc/init.d/mptcp-bond start", or at:'), ' ', startup()
			]),
			E('p', {}, [ _('If it ends at once, the log says why: "logread -e mptcp-bond".') ])
		] : [];

		return [ notice('danger', [ E('h4', {}, [ failure.message ]), ...advice ]) ];
	},

	/* Of a configuration that the agent has refused. */
	ofConfiguration(status) {
		return status.config_error ? [
			notice('danger', [
				E('h4', {}, [ _('The new configuration is not in force; the one before it is:') ]),
				E('pre', {}, [ status.config_error ]),
				settings()
			])
		] : [];
	},

	/* Of an agent that runs. */
	ofStatus(status) {
		const found = this.ofConfiguration(status);
		const kernel = status.kernel ?? {};

		if (status.state == 'disabled')
			found.push(notice('notice', [ _('The agent is switched off; switch it on here:'), ' ', settings() ]));
		else if (!status.servers?.length)
			found.push(notice('notice', [
				E('h4', {}, [ _('This router is not paired with a server yet.') ]),
				_('Run "mptcp-bond server invite NAME" on the server, and paste what it prints here:'), ' ', settings()
			]));
		else if (!status.uplinks?.length)
			found.push(notice('notice', [ _('There is no uplink yet; add some here:'), ' ', settings() ]));

		for (const manager of kernel.other_path_managers ?? [])
			found.push(this.warning(_('%s runs and manages MPTCP endpoints, too: stop one of the two.').format(manager)));

		for (const conflict of kernel.conflicts ?? [])
			found.push(this.warning(conflict));

		for (const sysctl of kernel.sysctls_not_set ?? [])
			found.push(this.warning(_('sysctl %s is not %s: %s').format(sysctl.key, sysctl.wanted, sysctl.error)));

		for (const failing of status.failures ?? [])
			found.push(this.warning(_('This fails and is tried again: %s: %s').format(failing.operation, failing.error)));

		return found;
	}
});
