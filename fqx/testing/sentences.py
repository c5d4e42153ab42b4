"""English sentences for calibrating and testing a sentence encoder, written for this project.

Twenty themes of ten sentences. `calibration_texts` and `held_out_texts` share no theme: the second
come from themes an encoder calibrated on the first has not seen.
"""

from __future__ import annotations

__all__ = ["THEMES", "calibration_texts", "held_out_texts"]


def calibration_texts() -> tuple[str, ...]:
    """Every sentence and every three neighbours joined, of the first fourteen themes: 252."""
    return _texts(THEMES[:14])


def held_out_texts() -> tuple[str, ...]:
    """The same of the last six themes: 108 texts."""
    return _texts(THEMES[14:])


def _texts(themes: tuple[str, ...]) -> tuple[str, ...]:
    texts: list[str] = []
    for theme in themes:
        lines = theme.strip().splitlines()
        texts += lines
        texts += [" ".join(lines[index : index + 3]) for index in range(len(lines) - 2)]
    return tuple(texts)


_KITCHEN = """
Bring the water to a boil before you add the lentils.
She burned the onions twice and blamed the pan.
A pinch of salt is enough for two cups of flour.
Who left the oven on all night?
The recipe calls for buttermilk, but yogurt thinned with milk will do.
Let the dough rest under a damp cloth for ninety minutes.
My grandfather never measured anything and his bread was perfect.
Sharpen the knife first; a dull blade slips.
The soup tasted of smoke, pepper and something like oranges.
Serve it cold with lemon, or warm with nothing at all.
"""

_WEATHER = """
Fog rolled over the ridge and swallowed the village by noon.
The forecast promises thirty millimetres of rain and gusts up to 70 km/h.
It has not snowed here since 1987.
Take an umbrella, just in case.
After the storm the air smelled of iron and cut grass.
Temperatures will fall below freezing in the eastern valleys tonight.
A dry spring means a bad summer for the farmers.
The barometer dropped so fast that we tied down the boats.
Is that thunder or a truck?
Clouds like torn cotton hung over the bay.
"""

_CODE = """
The function returns None when the list is empty.
A race condition between the two threads corrupts the cache about once a week.
Please rebase your branch before you ask for a review.
Tests pass locally but fail in continuous integration.
We replaced the linked list by an array and the program ran four times faster.
Why does this loop read the same file twice?
The compiler warns about an unused variable on line 214.
Memory grows without bound because nobody closes the connections.
Version 2.0 removes every deprecated argument.
Write the comment that you would have liked to read.
"""

_HEALTH = """
Drink plenty of fluids and rest for at least three days.
The x-ray showed a hairline fracture of the left wrist.
Blood pressure should be measured sitting, after five minutes of quiet.
He has been allergic to penicillin since childhood.
The clinic is closed on Wednesdays.
Side effects include drowsiness, headache and a dry mouth.
Her fever broke shortly before dawn.
A balanced diet matters more than any single vitamin.
The nurse asked him to rate the pain from one to ten.
Vaccination reduced the number of severe cases by about ninety percent.
"""

_FINANCE = """
The central bank left its rate unchanged at 3.25 percent.
Shares of the airline fell after it cut its outlook for the year.
Can I transfer money to an account in another currency?
Inflation eats savings slowly and then all at once.
The invoice is due within thirty days of receipt.
They borrowed against the house to keep the shop open.
Quarterly revenue rose to 4.1 billion, mostly on services.
Diversification is the only free lunch in investing.
Auditors found that the same sale had been booked twice.
The pension fund holds bonds, property and a little gold.
"""

_SPORT = """
The keeper dived the wrong way and the stadium fell silent.
She ran the last lap in fifty-eight seconds.
Rain stopped play shortly after lunch.
Their defence was solid until the captain was sent off.
Nobody expected the seventeen-year-old to win on clay.
The coach substituted three players at half time.
A marathon is won in the last ten kilometres.
He trains twice a day, six days a week.
The home team lost again, this time by a single point.
Which country has won the cup most often?
"""

_TRAVEL = """
The night train to the coast leaves from platform nine.
We lost our luggage in Lisbon and found it in Oslo.
Is breakfast included in the price of the room?
The museum is free on the first Sunday of the month.
From the pass you can see three countries on a clear day.
Turn left at the chapel and follow the river.
Visas are issued on arrival to citizens of most countries.
The ferry was cancelled because of the wind.
They walked from the monastery to the sea in nine days.
The old town is best before the cruise ships come in.
"""

_SCIENCE = """
Light from that galaxy left it before the Earth had formed.
The enzyme folds into its active shape within microseconds.
A control group is what separates a measurement from an anecdote.
Bees see ultraviolet patterns on petals that look plain to us.
Doubling the sample size did not change the conclusion.
The probe crossed the heliopause and kept on sending.
Carbon dating is useless for objects older than fifty thousand years.
Superconductors expel magnetic fields as they cool.
How do salmon find the river they were born in?
The experiment failed, which was the most interesting result of the year.
"""

_LAW = """
The tenant must be given three months' notice in writing.
The court dismissed the appeal without a hearing.
Nothing in this agreement limits liability for gross negligence.
A witness contradicted the statement of the driver.
The patent expires in the spring of 2031.
Personal data may be kept only as long as it is needed.
Both parties agreed to settle before the trial.
The new act forbids the sale of such devices to minors.
Is an oral contract binding?
The judge asked the jury to disregard the last remark.
"""

_MUSIC = """
The second violin came in a bar too early.
He plays the blues like someone who has paid for it.
Tune the guitar down a whole step for this song.
The choir rehearses on Thursdays in the old fire station.
Her first album was recorded in a kitchen with one microphone.
A fugue is a conversation in which everybody quotes.
The drummer counted to four and then nothing happened.
What key is this in?
The concert hall is famous for its long, warm echo.
They encored with a lullaby and the lights went up.
"""

_SCHOOL = """
The exam has three parts and lasts two hours.
Half of the class had never seen the sea.
Please hand in your essays by Friday at noon.
She explains fractions with apples and a very large knife.
The library lends laptops as well as books.
Children learn a second language faster by singing it.
He failed geometry twice and became an architect.
The bus driver knows every pupil by name.
Does the school offer evening courses for adults?
The experiment with the vinegar went slightly better than planned.
"""

_ANIMALS = """
The cat watched the printer as if it were prey.
Elephants mourn their dead and remember the place.
An octopus can open a jar from the inside.
The dog barked at the thunder until it stopped.
Wolves were seen near the reservoir for the first time in a century.
Swifts sleep on the wing, a few seconds at a time.
The zoo announced the birth of two red pandas.
Never feed bread to ducks.
Our neighbour keeps goats instead of mowing the lawn.
The whale surfaced so close that we could smell its breath.
"""

_HISTORY = """
The treaty was signed in a railway carriage.
Nobody knows who built the oldest of the stone circles.
In 1755 an earthquake destroyed most of the city in six minutes.
The emperor banned the book and everybody read it.
Salt was once worth its weight in silver.
The canal took eleven years and several thousand lives.
Letters from the front arrived months after the men who wrote them had died.
The printing press made handwriting a matter of taste.
Trade followed the monsoon along the coast of Africa.
The archive burned down in the year of the great fire.
"""

_REVIEWS = """
The battery lasts two days, the strap about two weeks.
Terrible service: we waited an hour for cold noodles.
I have bought this kettle three times and would buy it again.
The plot makes no sense but the costumes are wonderful.
Five stars for the staff, one for the plumbing.
It stopped working the day after the warranty ran out.
The screen is bright, sharp and impossible to read in the sun.
A quiet, generous film about people who repair clocks.
Do not believe the pictures; the pool is the size of a bathtub.
Cheap, sturdy and surprisingly comfortable.
"""

_GARDEN = """
Plant the bulbs in October, twice as deep as they are tall.
Slugs ate every lettuce in a single night.
The roses need sun, patience and a little ash.
Do tomatoes like company?
Compost is ready when it smells like a forest.
He pruned the apple tree so hard that it sulked for a year.
Mulch keeps the soil moist and the weeds down.
The greenhouse is warm even in February.
Her garden grows wild on purpose.
Water in the evening, never at noon.
"""

_SPACE = """
The rover drilled six centimetres into the floor of the crater.
Launch was scrubbed forty seconds before ignition because of a leaking valve.
There is more water under the ice of Europa than in all our oceans.
Two satellites passed within eleven metres of each other.
Astronauts grow taller in orbit and shrink again at home.
The telescope must be kept colder than fifty kelvin.
What would a year on that planet be like?
The capsule splashed down west of the islands at dawn.
A grain of dust at that speed hits like a bullet.
Nobody has walked on the Moon since 1972.
"""

_OFFICE = """
Could we move the meeting to Tuesday afternoon?
The printer on the third floor is out of toner again.
Please find attached the minutes of last week's call.
Her calendar is full until the end of the quarter.
We need a decision by Friday or the order is lost.
The new colleague starts on the first of June.
Nobody reads a report of more than two pages.
The badge opens every door except the right one.
Expenses above two hundred euros need a signature.
Thank you for your patience while we look into this.
"""

_CITY = """
The tram was late, so everybody talked to each other.
A new bridge will connect the market with the northern bank.
Rents have doubled in ten years while wages rose by a fifth.
The fountain in the square has been dry since the war.
Cyclists and taxis argue about the same two metres of road.
At night the river turns the colour of the neon signs.
Where can I park a camper van?
The bakery opens at five and sells out by seven.
They planted four thousand trees along the ring road.
From the roof you hear the whole city at once.
"""

_ENERGY = """
The turbine delivers three megawatts in a steady wind.
A heat pump moves warmth instead of making it.
The grid must balance supply and demand every second.
Old batteries find a second life in farm sheds.
Solar panels lose about half a percent of output per year.
Why is the electricity bill higher than last winter?
The dam was built for irrigation and now feeds two cities.
Insulating the roof paid for itself in six years.
The reactor was shut down for inspection on Monday.
Tides are predictable, waves are not.
"""

_FAMILY = """
My sister phones every Sunday, whether there is news or not.
The twins answer to each other's names.
We buried the time capsule under the swing.
He learned to cook after the divorce.
Grandmother's letters are in a language none of us can read.
Who gets the piano?
They met in a queue and married within the year.
The baby sleeps only in a moving car.
Every photograph of that summer is slightly out of focus.
She promised to come home before the first snow.
"""

THEMES: tuple[str, ...] = (
    _KITCHEN,
    _WEATHER,
    _CODE,
    _HEALTH,
    _FINANCE,
    _SPORT,
    _TRAVEL,
    _SCIENCE,
    _LAW,
    _MUSIC,
    _SCHOOL,
    _ANIMALS,
    _HISTORY,
    _REVIEWS,
    _GARDEN,
    _SPACE,
    _OFFICE,
    _CITY,
    _ENERGY,
    _FAMILY,
)
"""Ten sentences a theme, one a line."""
