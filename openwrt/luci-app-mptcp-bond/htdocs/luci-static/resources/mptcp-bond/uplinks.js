'use strict';
'require baseclass';
'require dom';
'require ui';
'require mptcp-bond.agent as agent';
'require mptcp-bond.graph as graph';
'require mptcp-bond.text as text';

/* A card for each uplink. Cards stay while their contents change, so that focus and open menus do, too. */

class Card {
	constructor(name, onChange) {
		this.name = name;
		this.swatch = E('span', { 'class': 'mptcp-bond-swatch' });
		this.state = E('span');
		this.reason = E('p', { 'class': 'mptcp-bond-reason' });
		this.down = E('span');
		this.up = E('span');
		this.facts = E('dl');
		this.usage = E('div');
		this.role = E('select', {
			'class': 'cbi-input-select',
			'aria-label': _('Role of %s').format(name),
			'disabled': !L.hasViewPermission() || null,
			'change': ui.createHandlerFn(this, 'setRole', onChange)
		});
		this.node = E('div', { 'class': 'mptcp-bond-card', 'data-uplink': name }, [
			E('div', { 'class': 'mptcp-bond-card-title' }, [ this.swatch, E('strong', {}, [ name ]), this.state ]),
			this.reason,
			E('div', { 'class': 'mptcp-bond-rates' }, [
				E('span', { 'title': _('Download') }, [ '↓ ', this.down ]),
				E('span', { 'title': _('Upload') }, [ '↑ ', this.up ])
			]),
			this.facts,
			this.usage,
			E('label', { 'class': 'mptcp-bond-role' }, [ _('Role'), ' ', this.role ])
		]);
	}

	setRole(onChange) {
		return agent.setRole(this.name, this.role.value).catch(failure => {
			ui.addNotification(null, E('p', {}, [
				_('The role of %s stays: %s').format(this.name, failure.message)
			]), 'danger');
		}).then(onChange);
	}

	update(uplink, index) {
		this.swatch.style.background = graph.color(index);
		dom.content(this.state, [ text.label(text.uplinkState(uplink)) ]);
		dom.content(this.reason, [ uplink.reason ]);
		dom.content(this.down, [ text.rate(uplink.rx_bps) ]);
		dom.content(this.up, [ text.rate(uplink.tx_bps) ]);
		dom.content(this.facts, this.factsOf(uplink).flatMap(([ name, value ]) =>
			[ E('dt', {}, [ name ]), E('dd', {}, [ value ]) ]));
		dom.content(this.usage, this.usageOf(uplink.usage));
		this.updateRole(uplink);
	}

	factsOf(uplink) {
		const list = items => (items ?? []).join(', ') || '–';

		return [
			[ _('Device'), uplink.device ?? '–' ],
			[ _('Address'), list(uplink.addresses) ],
			[ _('Gateway'), list(uplink.gateways) ],
			[ _('RTT'), text.milliseconds(uplink.rtt_ms) ],
			[ _('Loss'), text.percent(uplink.loss_percent) ],
			[ _('Subflows'), uplink.subflows ?? '–' ],
			[ _('Untunnelled'), list(uplink.untunnelled) ],
			[ _('Unchanged for'), text.duration(uplink.since_seconds ?? 0) ]
		];
	}

	usageOf(usage) {
		if (!usage)
			return [];

		const used = text.bytes(usage.period_bytes);

		if (!usage.quota_bytes)
			return [ E('small', {}, [ _('%s this month').format(used) ]) ];

		const share = Math.min(100, 100 * usage.period_bytes / usage.quota_bytes);

		return [
			E('div', {
				'class': 'cbi-progressbar',
				'title': _('%s of %s').format(used, text.bytes(usage.quota_bytes))
			}, [ E('div', { 'style': 'width:%.1f%%'.format(share) }) ]),
			E('small', {}, [ usage.until ? _('counted anew on %s').format(usage.until) : _('the clock is not set yet') ])
		];
	}

	updateRole(uplink) {
		/* Not under the user's hands. */
		if (document.activeElement === this.role)
			return;

		const set = uplink.role_set ?? 'default';
		const choices = Object.entries(text.roles).map(([ role, title ]) => [ role, title() ]);

		choices.unshift([ 'default', _('as configured (%s)').format(uplink.role) ]);
		dom.content(this.role, choices.map(([ role, title ]) =>
			E('option', { 'value': role, 'selected': (role == set) || null }, [ title ])));
		this.role.title = uplink.role_set ? _('Set by hand, until the agent restarts') : '';
	}
}

class Cards {
	/* `onChange` is called when a role was changed, or could not be. */
	constructor(onChange) {
		this.onChange = onChange;
		this.cards = new Map();
		this.node = E('div', { 'class': 'mptcp-bond-cards' });
	}

	update(uplinks) {
		const known = this.cards;

		this.cards = new Map(uplinks.map(({ name }) => [ name, known.get(name) ?? new Card(name, this.onChange) ]));

		for (const [ name, card ] of known)
			if (!this.cards.has(name))
				card.node.remove();

		uplinks.forEach((uplink, index) => {
			const card = this.cards.get(uplink.name);

			card.update(uplink, index);

			if (this.node.children[index] !== card.node)
				this.node.insertBefore(card.node, this.node.children[index] ?? null);
		});
	}
}

return baseclass.extend({ Cards });
