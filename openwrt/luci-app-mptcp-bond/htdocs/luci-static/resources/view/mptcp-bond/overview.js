'use strict';
'require view';
'require dom';
'require poll';
'require ui';
'require mptcp-bond.agent as agent';
'require mptcp-bond.check as check';
'require mptcp-bond.graph as graph';
'require mptcp-bond.notices as notices';
'require mptcp-bond.style as style';
'require mptcp-bond.text as text';
'require mptcp-bond.uplinks as uplinks';

/* Seconds between two looks at the agent, one call each. */
const INTERVAL = 3;

/* Rows that are shown; the agent knows more. */
const CONNECTIONS = 10;
const EVENTS = 15;

const levels = {
	error: { label: () => _('error'), style: 'important' },
	warning: { label: () => _('warning'), style: 'warning' },
	info: { label: () => _('info'), style: '' }
};

function table(titles, rows, empty) {
	return E('div', { 'class': 'mptcp-bond-scroll' }, [
		E('table', { 'class': 'table' }, [
			E('tr', { 'class': 'tr table-titles' }, titles.map(title => E('th', { 'class': 'th' }, [ title ]))),
			...rows.map(cells => E('tr', { 'class': 'tr' }, cells.map((cell, index) =>
				E('td', { 'class': 'td', 'data-title': titles[index] }, [ cell ])))),
			rows.length ? '' : E('tr', { 'class': 'tr placeholder' }, [ E('td', { 'class': 'td' }, [ E('em', {}, [ empty ]) ]) ])
		])
	]);
}

function section(title, children) {
	return E('div', { 'class': 'cbi-section' }, [ E('h3', {}, [ title ]), ...children ]);
}

function headline(status) {
	return [
		E('p', { 'class': 'mptcp-bond-headline' }, [
			text.label(text.agentState(status)), ' ', E('strong', {}, [ status.summary ])
		]),
		E('small', {}, [
			_('mptcp-bond %s, running for %s').format(status.version, text.duration(status.uptime_seconds))
		])
	];
}

/* As configured, and what its name stands for. */
function addressOf(server) {
	const used = server.address_in_use;

	return (!used || server.address.includes(used)) ? server.address : '%s → %s'.format(server.address, used);
}

function servers(status) {
	const rows = (status.servers ?? []).map(server => [
		E('strong', {}, [ server.name ]),
		text.label(text.serverState(server)),
		addressOf(server),
		text.milliseconds(server.rtt_ms),
		server.cipher ?? '–',
		[ server.reason, server.last_error ].filter(Boolean).join('; ') || '–'
	]);

	return table([ _('Server'), _('State'), _('Address'), _('RTT'), _('Cipher'), _('Remarks') ], rows,
		_('No server yet'));
}

function forwards(status) {
	const rows = (status.forwards ?? []).map(forward => [
		E('strong', {}, [ forward.name ]),
		text.label(text.forwardState(forward)),
		'%d/%s'.format(forward.port, forward.protocol ?? 'tcp'),
		forward.target,
		forward.connections,
		forward.reason || '–'
	]);

	return rows.length ? [ section(_('Forwards'), [
		table([ _('Forward'), _('State'), _('Port of the server'), _('Target'), _('Connections'), _('Remarks') ], rows)
	]) ] : [];
}

function connections(status) {
	const top = (status.connections?.top ?? []).slice(0, CONNECTIONS);
	const rows = top.map(connection => [
		connection.client,
		connection.target,
		text.rate(connection.down_bps),
		text.rate(connection.up_bps),
		text.bytes(connection.down_bytes),
		text.bytes(connection.up_bytes),
		text.duration(connection.age_seconds),
		connection.subflows ?? '–'
	]);

	return [
		E('p', {}, [ _('Open: %d; opened since the start: %d; failed: %d').format(
			status.streams?.open, status.streams?.opened_total, status.streams?.failed_total) ]),
		table([ _('Client'), _('Target'), _('Download'), _('Upload'), _('Received'), _('Sent'), _('Age'), _('Subflows') ],
			rows, _('No connections'))
	];
}

function events(status) {
	const latest = (status.events ?? []).slice(-EVENTS).reverse();

	return E('ul', { 'class': 'mptcp-bond-events' }, latest.map(event => E('li', {}, [
		E('span', {}, [ _('%s ago').format(text.duration(event.age_seconds)) ]),
		text.label({ label: levels[event.level]?.label() ?? event.level, style: levels[event.level]?.style ?? '' }),
		E('span', {}, [ event.text ])
	])));
}

return view.extend({
	/* Shows what there is, each part for itself: what fails says so in its place. */
	async refresh() {
		let status;

		try {
			status = await agent.status();
			this.failed = false;
		}
		catch (failure) {
			this.failed = true;
			dom.content(this.notices, notices.ofFailure(failure));
			this.data.classList.add('mptcp-bond-stale');
			return;
		}

		this.data.classList.remove('mptcp-bond-stale', 'hidden');

		const problems = notices.ofStatus(status);

		if (this.graph.lacks(status)) {
			try {
				this.graph.begin(await agent.history('seconds'));
			}
			catch (failure) {
				problems.push(notices.warning(_('The graph begins now: %s').format(failure.message)));
			}
		}

		this.graph.add(status);
		this.cards.update(status.uplinks ?? []);
		dom.content(this.notices, problems);
		dom.content(this.headline, headline(status));
		dom.content(this.servers, [ servers(status) ]);
		dom.content(this.forwards, forwards(status));
		dom.content(this.connections, connections(status));
		dom.content(this.events, [ events(status) ]);
	},

	render() {
		const refresh = () => this.refresh();

		this.graph = new graph.Graph();
		this.cards = new uplinks.Cards(refresh);
		[ this.notices, this.headline, this.servers, this.forwards, this.connections, this.events ] =
			Array.from({ length: 6 }, () => E('div'));
		this.notices.setAttribute('aria-live', 'polite');
		this.data = E('div', { 'class': 'hidden' }, [
			E('div', { 'class': 'cbi-section' }, [ this.headline ]),
			section(_('Uplinks'), [ this.cards.node ]),
			section(_('Rates'), [ this.graph.node ]),
			section(_('Server'), [ this.servers ]),
			this.forwards,
			section(_('Connections'), [ this.connections ]),
			section(_('Events'), [ this.events ])
		]);
		poll.add(refresh, INTERVAL);

		return Promise.all([ style.load(), this.refresh() ]).then(() => E('div', { 'class': 'mptcp-bond' }, [
			E('div', { 'class': 'mptcp-bond-top' }, [
				E('h2', {}, [ _('MPTCP bonding') ]),
				E('button', {
					'class': 'btn cbi-button cbi-button-action',
					'click': ui.createHandlerFn(check, 'run')
				}, [ _('Check everything') ])
			]),
			this.notices,
			this.data
		]));
	},

	handleSaveApply: null,
	handleSave: null,
	handleReset: null
});
