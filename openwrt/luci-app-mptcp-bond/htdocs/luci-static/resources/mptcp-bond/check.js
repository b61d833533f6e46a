'use strict';
'require baseclass';
'require ui';
'require mptcp-bond.agent as agent';
'require mptcp-bond.text as text';

/* The agent's check in a dialogue: it tries everything out, which takes some seconds. */

/* Seconds that a check may take. */
const LIMIT = 120;

const grades = {
	ok: { label: () => _('ok'), style: 'success' },
	warning: { label: () => _('warning'), style: 'warning' },
	failed: { label: () => _('failed'), style: 'important' }
};

function grade(finding) {
	const known = grades[finding.result];

	return text.label({ label: known?.label() ?? finding.result, style: known?.style ?? '' });
}

function show(children) {
	ui.showModal(_('Check'), [
		...children,
		E('div', { 'class': 'right' }, [
			E('button', { 'class': 'btn cbi-button', 'click': ui.hideModal }, [ _('Close') ])
		])
	], 'mptcp-bond-check');
}

function row(finding) {
	return E('tr', { 'class': 'tr' }, [
		E('td', { 'class': 'td' }, [ finding.subject ]),
		E('td', { 'class': 'td' }, [ finding.check ]),
		E('td', { 'class': 'td' }, [ grade(finding) ]),
		E('td', { 'class': 'td' }, [
			finding.found,
			finding.advice ? E('div', { 'class': 'mptcp-bond-advice' }, [ '→ ', finding.advice ]) : ''
		])
	]);
}

function showReport(report) {
	const findings = report.findings ?? [];
	const problems = findings.filter(finding => finding.result != 'ok');
	const others = findings.filter(finding => finding.result == 'ok');
	const titles = [ _('Subject'), _('Check'), _('Result'), _('Found') ];

	/* What is wrong comes first. */
	show([
		E('p', {}, [
			report.well ? _('Everything is well.') : _('Problems: %d').format(problems.length)
		]),
		E('div', { 'class': 'mptcp-bond-scroll' }, [
			E('table', { 'class': 'table' }, [
				E('tr', { 'class': 'tr table-titles' }, titles.map(title => E('th', { 'class': 'th' }, [ title ]))),
				...problems.concat(others).map(row)
			])
		])
	]);
}

function pause(seconds) {
	return new Promise(resolve => window.setTimeout(resolve, 1000 * seconds));
}

return baseclass.extend({
	async run() {
		ui.showModal(_('Check'), [
			E('p', { 'class': 'spinning' }, [ _('Uplinks and server are being tried out…') ])
		]);

		try {
			const begun = Date.now();
			let answer = await agent.check();

			while (answer.running && Date.now() - begun < 1000 * LIMIT) {
				await pause(1);
				answer = await agent.check();
			}

			if (answer.running)
				throw new Error(_('There is no report after %d seconds; the log may say why.').format(LIMIT));

			showReport(answer.report);
		}
		catch (failure) {
			show([ E('p', { 'class': 'alert-message danger' }, [ failure.message ]) ]);
		}
	}
});
