'use strict';
'require baseclass';

/* Numbers and states in words. What the agent says in words is shown as it is. */

const prefixes = [ '', 'k', 'M', 'G', 'T', 'P', 'E' ];

const uplinkStates = {
	inUse: { label: () => _('in use'), style: 'success' },
	degraded: { label: () => _('degraded'), style: 'warning' },
	standby: { label: () => _('standby'), style: 'notice' },
	down: { label: () => _('down'), style: 'important' },
	unused: { label: () => _('unused'), style: '' }
};

const agentStates = {
	bonding: { label: () => _('bonding'), style: 'success' },
	single: { label: () => _('one uplink'), style: 'success' },
	connecting: { label: () => _('connecting'), style: 'notice' },
	disabled: { label: () => _('switched off'), style: 'notice' },
	fallback: { label: () => _('no MPTCP'), style: 'warning' },
	direct: { label: () => _('untunnelled'), style: 'warning' },
	unconfigured: { label: () => _('not set up'), style: 'warning' },
	blocked: { label: () => _('blocked'), style: 'important' },
	offline: { label: () => _('offline'), style: 'important' }
};

const serverStates = {
	connected: { label: () => _('connected'), style: 'success' },
	connecting: { label: () => _('connecting'), style: 'notice' },
	standby: { label: () => _('standby'), style: 'notice' },
	lost: { label: () => _('lost'), style: 'important' }
};

const forwardStates = {
	forwarded: { label: () => _('forwarded'), style: 'success' },
	waiting: { label: () => _('waiting'), style: 'notice' },
	denied: { label: () => _('denied'), style: 'important' }
};

const roles = {
	bond: () => _('bond: always used'),
	backup: () => _('backup: while no bond uplink works'),
	overflow: () => _('overflow: while the bond uplinks are full'),
	off: () => _('off: left alone')
};

/* A state this page does not know is shown by its name. */
function state(known, name) {
	return { label: known[name]?.label() ?? name ?? '?', style: known[name]?.style ?? '' };
}

/* Three significant digits and a decimal prefix: 1234567 is '1.23 M'. */
function withPrefix(value) {
	let scaled = +value || 0;
	let prefix = 0;

	/* What would round to 1000 belongs to the next prefix. */
	while (scaled >= 999.5 && prefix < prefixes.length - 1) {
		scaled /= 1000;
		prefix++;
	}

	const digits = (prefix == 0 || scaled >= 99.95) ? 0 : (scaled < 9.995 ? 2 : 1);

	return '%s %s'.format(scaled.toFixed(digits), prefixes[prefix]);
}

return baseclass.extend({
	roles,

	uplinkState(uplink) {
		if (uplink.state == 'up' || uplink.state == 'degraded')
			return state(uplinkStates, !uplink.in_use ? 'standby' : uplink.state == 'up' ? 'inUse' : 'degraded');

		return state(uplinkStates, uplink.state);
	},

	agentState(status) {
		return state(agentStates, status.state);
	},

	serverState(server) {
		return state(serverStates, server.state);
	},

	forwardState(forward) {
		return state(forwardStates, forward.state);
	},

	rate(bitsPerSecond) {
		return '%sbit/s'.format(withPrefix(bitsPerSecond));
	},

	bytes(bytes) {
		return '%sB'.format(withPrefix(bytes));
	},

	milliseconds(ms) {
		return (ms == null) ? '–' : '%s ms'.format(ms < 100 ? ms.toFixed(1) : ms.toFixed(0));
	},

	percent(percent) {
		return (percent == null) ? '–' : '%s %%'.format(percent.toFixed(1));
	},

	/* In its two largest units. */
	duration(seconds) {
		const parts = [
			[ Math.floor(seconds / 86400), _('%d d') ],
			[ Math.floor(seconds / 3600) % 24, _('%d h') ],
			[ Math.floor(seconds / 60) % 60, _('%d min') ],
			[ Math.floor(seconds) % 60, _('%d s') ]
		];
		const first = (seconds < 1) ? 3 : parts.findIndex(([ count ]) => count > 0);

		return parts.slice(first, first + 2).filter(([ count ], index) => index == 0 || count > 0)
			.map(([ count, unit ]) => unit.format(count)).join(' ');
	},

	/* A coloured word. */
	label({ label, style }) {
		return E('span', {
			'class': 'label %s'.format(style),
			/* Some themes' own colour for it is that of a notice. */
			'style': (style == 'important')
				? 'background-color:var(--error-color-high, #c9302c);color:var(--on-error-color, #fff)' : null
		}, [ label ]);
	}
});
