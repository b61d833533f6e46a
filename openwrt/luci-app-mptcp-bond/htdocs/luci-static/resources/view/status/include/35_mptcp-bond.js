'use strict';
'require baseclass';
'require mptcp-bond.agent as agent';
'require mptcp-bond.text as text';

/* The card of LuCI's main status page. */

function row(uplink) {
	const cells = [
		[ _('Uplink'), uplink.name ],
		[ _('State'), text.label(text.uplinkState(uplink)) ],
		[ _('Download'), text.rate(uplink.rx_bps) ],
		[ _('Upload'), text.rate(uplink.tx_bps) ],
		[ _('RTT'), text.milliseconds(uplink.rtt_ms) ]
	];

	return E('tr', { 'class': 'tr' }, cells.map(([ title, value ]) =>
		E('td', { 'class': 'td left', 'data-title': title }, [ value ])));
}

return baseclass.extend({
	title: _('MPTCP bonding'),

	load() {
		return agent.status().catch(failure => failure);
	},

	render(status) {
		/* A login without the right to look has no use for the card. */
		if (status?.kind == 'denied')
			return null;

		const more = E('a', { 'href': L.url('admin/services/mptcp-bond/overview') }, [ _('Overview') ]);

		if (status instanceof Error)
			return E('p', {}, [ text.label({ label: _('error'), style: 'important' }), ' ', status.message, ' ', more ]);

		const titles = [ _('Uplink'), _('State'), _('Download'), _('Upload'), _('RTT') ];

		return E([], [
			E('p', {}, [ text.label(text.agentState(status)), ' ', status.summary, ' – ', more ]),
			E('table', { 'class': 'table' }, [
				E('tr', { 'class': 'tr table-titles' }, titles.map(title => E('th', { 'class': 'th left' }, [ title ]))),
				...(status.uplinks ?? []).map(row)
			])
		]);
	}
});
